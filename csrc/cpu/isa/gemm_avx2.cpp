#if defined(__x86_64__)
#define CNNEXT_AVX2 1
#include "../isa_begin.h"

#include "../grouped.h"
#include "../pointwise.h"

#include "../isa_end.h"
#endif
