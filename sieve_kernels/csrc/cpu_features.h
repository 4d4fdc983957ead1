// Which instruction sets the kernels are compiled for, and which of them is in use.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SIEVE_AMX 1
#endif

namespace sieve {

// Each includes all before it. core/library.py has the same order in `ISAS`.
enum Isa : int { PORTABLE, AVX2, AVX512, AVX512BF16, AMX };

// All kernels read this instead of asking the processor, so one switch reaches all of them. Set once, when the library
// loads.
extern Isa isa_in_use;

}  // namespace sieve
