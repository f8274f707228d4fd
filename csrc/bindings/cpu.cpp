// The CPU implementations of cnnext's operators: checks, allocation, and the call of a kernel from csrc/cpu.
// The operators' schemas are declared in cnnext/ops.py.
#include <tuple>

#include "../cpu/kernels.h"
#include "problem.h"

namespace cnnext::bindings {
namespace {

using cpu::OpKernels;
using cpu::Parallel;

Parallel torch_pool() {
  return Parallel(
      [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
        STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
      },
      static_cast<int>(torch::stable::get_num_threads()));
}

const OpKernels& kernels_of(Family family) {
  const cpu::KernelTable& table = cpu::kernels();
  switch (family) {
    case Family::kDepthwise: return table.depthwise;
    case Family::kPointwise: return table.pointwise;
    default: return table.grouped;
  }
}

Tensor forward(Family family, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
               int64_t activation) {
  const ForwardCall call =
      prepare_forward(family, input, weight, bias, make_geometry(stride, padding, dilation), groups, activation);
  if (call.params.N > 0) {
    kernels_of(family).forward(call.params, torch_pool(), call.x.const_data_ptr(), call.w.const_data_ptr(),
                               call.bias ? call.bias->const_data_ptr() : nullptr, call.output.mutable_data_ptr());
  }
  return call.output;
}

Tensor backward_input(Family family, const Tensor& grad_output, const Tensor& weight, const IntList& input_size,
                      const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
                      bool channels_last) {
  check_4d(weight, "weight");
  check_like(weight, "weight", grad_output);
  const Dims4 input_dims = make_dims(input_size, "input_size");
  ConvParams params =
      make_params(family, input_dims, sizes_of(weight), make_geometry(stride, padding, dilation), groups);
  check_grad_output(grad_output, params);
  params.dtype = dtype_of(grad_output);
  params.layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  Tensor grad_input = empty_dense(input_dims, params.layout, grad_output);
  if (params.N == 0) return grad_input;

  const Tensor dy = with_unit_stride(grad_output, params.layout);
  const Tensor w = as_contiguous(weight);
  params.x_strides = kernel_strides(grad_input, params.layout);
  params.y_strides = kernel_strides(dy, params.layout);
  kernels_of(family).backward_input(params, torch_pool(), dy.const_data_ptr(), w.const_data_ptr(),
                                    grad_input.mutable_data_ptr());
  return grad_input;
}

/// The second result has no elements unless `with_bias`.
std::tuple<Tensor, Tensor> backward_weight(Family family, const Tensor& grad_output, const Tensor& input,
                                           const IntList& weight_size, const IntList& stride, const IntList& padding,
                                           const IntList& dilation, int64_t groups, bool with_bias,
                                           bool channels_last) {
  check_4d(input, "input");
  check_like(input, "input", grad_output);
  const Dims4 weight_dims = make_dims(weight_size, "weight_size");
  ConvParams params =
      make_params(family, sizes_of(input), weight_dims, make_geometry(stride, padding, dilation), groups);
  check_grad_output(grad_output, params);
  params.dtype = dtype_of(input);
  params.layout = suggested_layout(sizes_of(input), strides_of(input));
  // The kernel writes a contiguous filter. With one channel a group, or one tap, that is channels_last as well.
  const bool reorder = channels_last && weight_dims[1] > 1 && params.R * params.S > 1;
  const Layout written_layout = channels_last && !reorder ? Layout::kNHWC : Layout::kNCHW;
  Tensor grad_weight = empty_dense(weight_dims, written_layout, input);
  Tensor grad_bias = empty_1d(with_bias ? params.K : 0, input);
  if (params.N == 0) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else {
    const Tensor x = with_unit_stride(input, params.layout);
    const Tensor dy = with_unit_stride(grad_output, params.layout);
    params.x_strides = kernel_strides(x, params.layout);
    params.y_strides = kernel_strides(dy, params.layout);
    kernels_of(family).backward_weight(params, torch_pool(), dy.const_data_ptr(), x.const_data_ptr(),
                                       grad_weight.mutable_data_ptr(),
                                       with_bias ? grad_bias.mutable_data_ptr() : nullptr);
  }
  if (reorder) {
    Tensor reordered = empty_dense(weight_dims, Layout::kNHWC, input);
    torch::stable::copy_(reordered, grad_weight);
    grad_weight = reordered;
  }
  return {grad_weight, grad_bias};
}

// The operators. Depthwise and pointwise take no argument for the groups: it follows from the family.

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                        IntList padding, IntList dilation, int64_t activation) {
  return forward(Family::kDepthwise, input, weight, bias, stride, padding, dilation, kDepthwiseGroups, activation);
}

Tensor depthwise_conv2d_backward_input(const Tensor& grad_output, const Tensor& weight, IntList input_size,
                                       IntList stride, IntList padding, IntList dilation, bool channels_last) {
  return backward_input(Family::kDepthwise, grad_output, weight, input_size, stride, padding, dilation,
                        kDepthwiseGroups, channels_last);
}

std::tuple<Tensor, Tensor> depthwise_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                            IntList weight_size, IntList stride, IntList padding,
                                                            IntList dilation, bool with_bias, bool channels_last) {
  return backward_weight(Family::kDepthwise, grad_output, input, weight_size, stride, padding, dilation,
                         kDepthwiseGroups, with_bias, channels_last);
}

Tensor grouped_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                      IntList padding, IntList dilation, int64_t groups, int64_t activation) {
  return forward(Family::kGrouped, input, weight, bias, stride, padding, dilation, groups, activation);
}

Tensor grouped_conv2d_backward_input(const Tensor& grad_output, const Tensor& weight, IntList input_size,
                                     IntList stride, IntList padding, IntList dilation, int64_t groups,
                                     bool channels_last) {
  return backward_input(Family::kGrouped, grad_output, weight, input_size, stride, padding, dilation, groups,
                        channels_last);
}

std::tuple<Tensor, Tensor> grouped_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                          IntList weight_size, IntList stride, IntList padding,
                                                          IntList dilation, int64_t groups, bool with_bias,
                                                          bool channels_last) {
  return backward_weight(Family::kGrouped, grad_output, input, weight_size, stride, padding, dilation, groups,
                         with_bias, channels_last);
}

Tensor pointwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                        IntList padding, IntList dilation, int64_t activation) {
  return forward(Family::kPointwise, input, weight, bias, stride, padding, dilation, 1, activation);
}

Tensor pointwise_conv2d_backward_input(const Tensor& grad_output, const Tensor& weight, IntList input_size,
                                       IntList stride, IntList padding, IntList dilation, bool channels_last) {
  return backward_input(Family::kPointwise, grad_output, weight, input_size, stride, padding, dilation, 1,
                        channels_last);
}

std::tuple<Tensor, Tensor> pointwise_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                            IntList weight_size, IntList stride, IntList padding,
                                                            IntList dilation, bool with_bias, bool channels_last) {
  return backward_weight(Family::kPointwise, grad_output, input, weight_size, stride, padding, dilation, 1, with_bias,
                         channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnext, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward_input", TORCH_BOX(&depthwise_conv2d_backward_input));
  m.impl("depthwise_conv2d_backward_weight", TORCH_BOX(&depthwise_conv2d_backward_weight));
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d));
  m.impl("grouped_conv2d_backward_input", TORCH_BOX(&grouped_conv2d_backward_input));
  m.impl("grouped_conv2d_backward_weight", TORCH_BOX(&grouped_conv2d_backward_weight));
  m.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
  m.impl("pointwise_conv2d_backward_input", TORCH_BOX(&pointwise_conv2d_backward_input));
  m.impl("pointwise_conv2d_backward_weight", TORCH_BOX(&pointwise_conv2d_backward_weight));
}

}  // namespace cnnext::bindings

/// The instruction set of the kernels in use, for cnnext.info. Called through ctypes.
extern "C" __attribute__((visibility("default"))) const char* cnnext_cpu_isa() { return cnnext::cpu::kernels().isa; }
