// What this processor can run.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SIEVE_AMX 1

#include <sys/syscall.h>
#include <unistd.h>

namespace sieve {

// Whether the processor has AMX and the kernel lets this process use it; asked once.
inline bool amx_usable() {
  static const bool usable = [] {
    unsigned eax, ebx, ecx, edx;
    __asm__("cpuid" : "=a"(eax), "=b"(ebx), "=c"(ecx), "=d"(edx) : "a"(7), "c"(0));
    const bool tiles = (edx >> 24 & 1) && (edx >> 22 & 1);
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return tiles && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16") &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  }();
  return usable;
}

}  // namespace sieve
#endif
