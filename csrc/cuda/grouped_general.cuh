// Shared by the grouped kernels of last resort.
#pragma once

#include "element.h"
#include "kernels.h"
#include "launch_config.h"
#include "portability.h"

namespace cnnext::cuda {

/// Strides of the filter, in either order.
struct FilterStrides {
  int64_t k, c, r, s;
};

inline FilterStrides filter_strides(const ConvParams& p, bool channels_last) {
  const int64_t channels = p.channels_per_group();
  if (channels_last) return {p.R * p.S * channels, 1, p.S * channels, channels};
  return {channels * p.R * p.S, p.R * p.S, p.S, 1};
}

/// Calls f(T()) for the problem's dtype.
template <class F>
void dispatch_dtype(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32: return f(float());
    case DType::kFloat64: return f(double());
    case DType::kFloat16: return f(__half());
    case DType::kBFloat16: return f(__nv_bfloat16());
  }
}

/// (n, channel, row, column) of element `index` of a tensor, its innermost dimension of memory first.
struct Element {
  int64_t n, channel, row, column;
};

__device__ inline Element element_at(int64_t index, Layout layout, int64_t channels, int64_t rows, int64_t columns) {
  Element e;
  if (layout == Layout::kNHWC) {
    e.channel = index % channels, index /= channels;
    e.column = index % columns, index /= columns;
    e.row = index % rows, e.n = index / rows;
  } else {
    e.column = index % columns, index /= columns;
    e.row = index % rows, index /= rows;
    e.channel = index % channels, e.n = index / channels;
  }
  return e;
}

}  // namespace cnnext::cuda
