#if defined(__x86_64__)
#include "../isa_prelude.h"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#define CNNEXT_ISA avx512
#define CNNEXT_AVX512 1
#include "../pointwise.h"
#include "../grouped.h"
#endif
