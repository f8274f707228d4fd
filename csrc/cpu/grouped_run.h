// Which kernel runs a pass of a grouped convolution; see grouped.h.
#pragma once

#include "grouped_few_pixels.h"
#include "grouped_narrow.h"
#include "grouped_pixel_columns.h"
#include "grouped_pixel_rows.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// With fewer pixels than this, turning the filter for grouped_pixel_rows.h costs more than it gains: channels-last,
/// and channels-first with several taps.
constexpr int64_t kFewPixels = 12, kFewPixelsPlanar = 100;

/// Whether pixels are the columns of the matrix product. Channels-first with one tap already has its columns in place;
/// with more, gathering costs more than turning.
inline bool prefers_pixel_columns(const Pass& pass, Layout layout) {
  if (layout == Layout::kNHWC) return pass.pixels() < kFewPixels;
  return pass.num_taps <= 1 || pass.pixels() < kFewPixelsPlanar;
}

/// Whether run_pass takes grouped_pixel_rows.h, the one kernel that adds a residual, in channels-last.
template <class T, class A>
bool adds_residual(const Pass& pass, Layout layout) {
  return layout == Layout::kNHWC && pass.pixels() >= kFewPixels && !FewPixelsPass<T, A>::takes(pass) &&
         !NarrowPass<T, A>::takes(pass);
}

template <class T, class A>
void run_pass(const Pass& pass, Layout layout, const Parallel& parallel, const T* in, const T* filter, const A* bias,
              T* out) {
  if (FewPixelsPass<T, A>::takes(pass)) {
    FewPixelsPass<T, A>(pass, filter, bias, out).run(parallel, in);
  } else if (NarrowPass<T, A>::takes(pass) && pass.pixels() >= kFewPixels) {
    run_narrow<T, A>(pass, layout, parallel, in, filter, bias, out);
  } else if (prefers_pixel_columns(pass, layout)) {
    run_pixel_columns<T, A>(pass, parallel, in, filter, bias, out);
  } else {
    run_pixel_rows<T, A>(pass, layout, layout, parallel, in, filter, bias, out);
  }
}

}  // namespace cnnext::cpu::CNNEXT_ISA
