// Functions between TARGET("…") and TARGET_END are compiled for processors with these features, by GCC and clang alike:
// call them only where `isa_in_use` (cpu_features.h) has them. Include what they need before.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define SIEVE_X86 1
#endif

#define SIEVE_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define TARGET(features) SIEVE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END SIEVE_PRAGMA(clang attribute pop)
#elif defined(__GNUC__)
#define TARGET(features) SIEVE_PRAGMA(GCC push_options) SIEVE_PRAGMA(GCC target(features, "prefer-vector-width=512"))
#define TARGET_END SIEVE_PRAGMA(GCC pop_options)
#endif
