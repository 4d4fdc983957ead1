#include "features.h"

extern "C" int sieve_has_amx() {
#ifdef SIEVE_AMX
  return sieve::amx_usable();
#else
  return 0;
#endif
}
