// The order in which inference keeps the filter of a matrix product, made once by cnnext/fusion (pack_filter):
//
//   packed[group][panel][t][c][j] = w[group * K / groups + panel * kPackedColumns + j, c, t]
//
// for taps t and channels c of a group, as accumulators, zero beyond the last output channel. A register tile then
// reads its columns as they lie. The width of a panel is the same on every machine, so a packed filter can be stored; a
// tile narrower than a panel walks a part of it.
#pragma once

#include "simd.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Elements of a packed filter of one group.
CNNEXT_INLINE int64_t packed_size(int64_t depth, int64_t out_channels) {
  return ceil_div(out_channels, kPackedColumns) * kPackedColumns * depth;
}

/// Where the columns from `column` on begin, depth 0; the next depth is kPackedColumns further.
template <class A>
CNNEXT_INLINE const A* packed_columns(const A* group, int64_t depth, int64_t column) {
  return group + column / kPackedColumns * kPackedColumns * depth + column % kPackedColumns;
}

}  // namespace cnnext::cpu::CNNEXT_ISA
