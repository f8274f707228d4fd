// Every standard header the kernels use, included before a source in isa/ switches the instruction set.
//
// NOTE: inline functions of the standard library are merged across translation units. If one were first compiled under
// `#pragma GCC target("avx512f")`, a machine without AVX-512 could end up running that copy.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../conv_params.h"
#include "kernels.h"
#include "parallel.h"
