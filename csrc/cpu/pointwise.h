// Pointwise (1x1, one group) convolution: y(n, k, p, q) = activation(bias(k) + sum over c of w(k, c) * x(n, c, p, q)),
// a matrix product of the filter with the pixels, for any stride and padding.
//
// It is the grouped convolution of one group and one tap, for which grouped_pass.h joins images and rows that lie in
// memory without gaps into one long row of pixels, and which reads the filter and, where it can, the input in place. So
// the kernels are those of grouped.h; the table entries are separate so that a caller need not know.
#pragma once

#include "grouped.h"

namespace cnnext::cpu::CNNEXT_ISA {

extern const OpKernels kPointwiseKernels;
const OpKernels kPointwiseKernels = {grouped_forward, grouped_backward_input, grouped_backward_weight};

}  // namespace cnnext::cpu::CNNEXT_ISA
