#if defined(__x86_64__)
#include "../isa_prelude.h"
#pragma GCC target("avx2,fma,f16c,bmi2")
#define CNNEXT_ISA avx2
#define CNNEXT_AVX2 1
#include "../pointwise.h"
#include "../grouped.h"
#endif
