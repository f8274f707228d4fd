#if defined(__x86_64__)
#include "../isa_prelude.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#define CNNEXT_ISA avx2
#define CNNEXT_AVX2 1
#include "../fused.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
