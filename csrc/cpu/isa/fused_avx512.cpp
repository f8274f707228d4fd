#if defined(__x86_64__)
#include "../isa_prelude.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms from GCC 12's own AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CNNEXT_ISA avx512
#define CNNEXT_AVX512 1
#include "../fused.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
