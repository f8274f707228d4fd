// Switches the instruction set, for a source in isa/ that has defined CNNEXT_AVX512 or CNNEXT_AVX2, or neither for the
// baseline. The source includes its kernels after this, and isa_end.h after them.
#include "isa_prelude.h"

#if defined(CNNEXT_AVX512)
#define CNNEXT_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi2")
#pragma GCC diagnostic ignored "-Wuninitialized"  // false alarms from GCC 12's own AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#elif defined(CNNEXT_AVX2)
#define CNNEXT_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi2")
#endif
#else
#define CNNEXT_ISA baseline
#endif
