// Which instruction sets the kernels are compiled for, and which of them is in use.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define SIEVE_AMX 1
#endif

namespace sieve {

// Each with all before it. The names are those of `ISAS` in native/__init__.py.
enum Isa : int { PORTABLE, AVX2, AVX512, AVX512BF16, AMX };

// Every kernel asks here, not the processor, so that one switch reaches all of them. Set once, when the library loads.
extern Isa isa_in_use;

}  // namespace sieve
