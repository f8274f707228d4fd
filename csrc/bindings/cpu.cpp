// The CPU implementations of cnnext's operators: checks, allocation, and the call of a kernel from csrc/cpu.
// The operators' schemas are declared in cnnext/ops.py.
#include "../cpu/kernels.h"
#include "output_pool.h"
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
  const BackwardInputCall call = prepare_backward_input(
      family, grad_output, weight, input_size, make_geometry(stride, padding, dilation), groups, channels_last);
  if (call.params.N > 0) {
    kernels_of(family).backward_input(call.params, torch_pool(), call.dy.const_data_ptr(), call.w.const_data_ptr(),
                                      call.grad_input.mutable_data_ptr());
  }
  return call.grad_input;
}

/// The second result has no elements unless `with_bias`.
std::tuple<Tensor, Tensor> backward_weight(Family family, const Tensor& grad_output, const Tensor& input,
                                           const IntList& weight_size, const IntList& stride, const IntList& padding,
                                           const IntList& dilation, int64_t groups, bool with_bias,
                                           bool channels_last) {
  const BackwardWeightCall call =
      prepare_backward_weight(family, grad_output, input, weight_size, make_geometry(stride, padding, dilation), groups,
                              with_bias, channels_last);
  if (call.params.N > 0) {
    kernels_of(family).backward_weight(call.params, torch_pool(), call.dy.const_data_ptr(), call.x.const_data_ptr(),
                                       call.grad_weight.mutable_data_ptr(),
                                       with_bias ? call.grad_bias.mutable_data_ptr() : nullptr);
  }
  return finish_backward_weight(call);
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

/// Gives the free blocks of the output pool back to the system and returns their bytes, for
/// cnnext.backends.empty_cpu_pool. Called through ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t cnnext_cpu_empty_pool() {
  return cnnext::bindings::OutputPool::instance().empty();
}
