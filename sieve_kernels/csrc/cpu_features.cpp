#include "cpu_features.h"

#ifdef SIEVE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sieve {

Isa isa_in_use = PORTABLE;

#ifdef SIEVE_AMX
// Whether the processor has AMX and the kernel lets this process use it.
static bool amx_usable() {
  unsigned eax, ebx, ecx, edx;
  __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(0));
  const bool tiles = (edx >> 24 & 1) && (edx >> 22 & 1);
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

static Isa widest() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return AVX2;
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vnni")) return AVX512;
#ifdef SIEVE_AMX
  if (amx_usable()) return AMX;
#endif
  return AVX512BF16;
#else
  return PORTABLE;
#endif
}

}  // namespace sieve

extern "C" int sieve_widest_isa() { return sieve::widest(); }

// `isa` must not exceed sieve_widest_isa(): wider kernels would end in an illegal instruction.
extern "C" void sieve_use_isa(int isa) { sieve::isa_in_use = static_cast<sieve::Isa>(isa); }
