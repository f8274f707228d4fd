#if defined(__x86_64__)
#define CNNEXT_AVX2 1
#include "../isa_begin.h"

#include "../fused.h"

#include "../isa_end.h"
#endif
