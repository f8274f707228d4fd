// The CPU implementations of cnnext's operators: checks, allocation, and the call of a kernel from csrc/cpu.
// The operators' schemas are declared in cnnext/ops.py.
#include "../cpu/kernels.h"
#include "output_pool.h"
#include "problem.h"

namespace cnnext::bindings {
namespace {

using cpu::kPackedColumns;
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

// Inference.

/// The residual and the packed filter of a fused convolution, in forms that the kernels take.
struct Extras {
  std::optional<Tensor> residual, packed_weight;

  /// `params` are those of the convolution, `output` its result.
  Extras(const ConvParams& params, const Tensor& output, const std::optional<Tensor>& residual_argument,
         const std::optional<Tensor>& packed_argument) {
    if (residual_argument.has_value()) {
      check_residual(*residual_argument, output);
      residual = with_unit_stride(*residual_argument, params.layout);
    }
    if (!packed_argument.has_value()) return;
    const int64_t columns = (params.outputs_per_group() + kPackedColumns - 1) / kPackedColumns * kPackedColumns;
    const int64_t size = params.groups * columns * params.channels_per_group() * params.R * params.S;
    const DType dtype = params.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
    STD_TORCH_CHECK(packed_argument->is_cpu() && packed_argument->is_contiguous() && packed_argument->numel() == size &&
                        dtype_of(*packed_argument) == dtype,
                    "expected packed_weight to be what cnnext.inference_ops.pack_filter makes of the weight, with ",
                    size, " elements, but got one of ", packed_argument->numel(), " elements");
    packed_weight = packed_argument;
  }

  cpu::FusedOperands operands(const ConvParams& params, const Tensor& x, const Tensor& w,
                              const std::optional<Tensor>& bias, const Tensor& output) const {
    return {x.const_data_ptr(),
            params.layout,
            w.const_data_ptr(),
            packed_weight ? packed_weight->const_data_ptr() : nullptr,
            bias ? bias->const_data_ptr() : nullptr,
            residual ? residual->const_data_ptr() : nullptr,
            residual ? kernel_strides(*residual, params.layout) : Strides4{},
            output.mutable_data_ptr()};
  }
};

/// prepare_forward for a channels_last output of a channels-first input, which is read in `x_layout`.
ForwardCall prepare_turned(Family family, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                           const Geometry& geometry, int64_t groups, int64_t activation, Layout x_layout) {
  const ConvParams params = make_forward_params(family, input, sizes_of(input), weight, geometry, groups, activation);
  ForwardCall call{params, with_unit_stride(input, x_layout), as_contiguous(weight), make_bias(bias, params.K, input),
                   empty_dense({params.N, params.K, params.P, params.Q}, Layout::kNHWC, input)};
  call.params.layout = Layout::kNHWC;
  call.params.x_strides = kernel_strides(call.x, x_layout);
  call.params.y_strides = kernel_strides(call.output, Layout::kNHWC);
  return call;
}

// NOTE: numbers in place of lists: unpacking three lists takes longer than all the rest of a small call.

Tensor fused_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& residual, const std::optional<Tensor>& packed_weight, int64_t stride_h,
                    int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
                    int64_t groups, int64_t activation, bool channels_last) {
  check_4d(input, "input");
  const bool depthwise = groups > 1 && groups == input.size(1);
  const Family family = depthwise ? Family::kDepthwise : Family::kGrouped;
  const Geometry geometry = check_geometry({{stride_h, stride_w}, {padding_h, padding_w}, {dilation_h, dilation_w}});
  const bool turns = channels_last && output_layout(input, weight) == Layout::kNCHW;
  // A dense convolution reads planes as they lie; for others the input is turned.
  const Layout x_layout = turns && groups == 1 ? Layout::kNCHW : Layout::kNHWC;
  ForwardCall call = turns ? prepare_turned(family, input, weight, bias, geometry, groups, activation, x_layout)
                           : prepare_forward(family, input, weight, bias, geometry, groups, activation);
  ConvParams& params = call.params;
  const Extras extras(params, call.output, residual, packed_weight);
  if (params.N == 0) return call.output;
  cpu::FusedOperands operands = extras.operands(params, call.x, call.w, call.bias, call.output);
  if (turns) operands.x_layout = x_layout;
  const cpu::FusedKernels& kernels = cpu::kernels().fused;
  if (!depthwise) {
    kernels.conv(params, torch_pool(), operands);
    return call.output;
  }
  const Activation last = params.activation;
  if (operands.residual) params.activation = Activation::kNone;
  kernels_of(family).forward(params, torch_pool(), operands.x, operands.w, operands.bias, operands.y);
  if (operands.residual) {
    params.activation = last;
    kernels.add_residual(params, torch_pool(), operands);
  }
  return call.output;
}

Tensor separable_conv2d(const Tensor& input, const Tensor& depthwise_weight,
                        const std::optional<Tensor>& depthwise_bias, const Tensor& weight,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                        const std::optional<Tensor>& packed_weight, int64_t stride_h, int64_t stride_w,
                        int64_t padding_h, int64_t padding_w, int64_t dilation_h, int64_t dilation_w,
                        int64_t depthwise_activation, int64_t activation) {
  check_4d(input, "input");
  check_4d(depthwise_weight, "depthwise_weight");
  const Layout layout = output_layout(input, depthwise_weight);
  if (layout != Layout::kNHWC || depthwise_weight.size(0) != input.size(1)) {
    const Tensor middle = depthwise_conv2d(input, depthwise_weight, depthwise_bias, {stride_h, stride_w},
                                           {padding_h, padding_w}, {dilation_h, dilation_w}, depthwise_activation);
    return fused_conv2d(middle, weight, bias, residual, packed_weight, 1, 1, 0, 0, 1, 1, 1, activation, false);
  }
  ConvParams depthwise =
      make_forward_params(Family::kDepthwise, input, sizes_of(input), depthwise_weight,
                          check_geometry({{stride_h, stride_w}, {padding_h, padding_w}, {dilation_h, dilation_w}}),
                          kDepthwiseGroups, depthwise_activation);
  ConvParams pointwise =
      make_forward_params(Family::kPointwise, input, {depthwise.N, depthwise.K, depthwise.P, depthwise.Q}, weight,
                          {{1, 1}, {0, 0}, {1, 1}}, 1, activation);
  depthwise.layout = pointwise.layout = layout;
  const Tensor x = with_unit_stride(input, layout), w = as_contiguous(weight);
  const Tensor depthwise_w = as_contiguous(depthwise_weight);
  const std::optional<Tensor> depthwise_b = make_bias(depthwise_bias, depthwise.K, input);
  const std::optional<Tensor> b = make_bias(bias, pointwise.K, input);
  const Tensor output = empty_dense({pointwise.N, pointwise.K, pointwise.P, pointwise.Q}, layout, input);
  depthwise.x_strides = kernel_strides(x, layout);
  pointwise.y_strides = kernel_strides(output, layout);
  const Extras extras(pointwise, output, residual, packed_weight);
  if (depthwise.N == 0) return output;
  cpu::kernels().fused.separable(
      {depthwise, pointwise, depthwise_w.const_data_ptr(), depthwise_b ? depthwise_b->const_data_ptr() : nullptr},
      torch_pool(), extras.operands(pointwise, x, w, b, output));
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnext, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward_input", TORCH_BOX(&depthwise_conv2d_backward_input));
  m.impl("depthwise_conv2d_backward_weight", TORCH_BOX(&depthwise_conv2d_backward_weight));
  m.impl("fused_conv2d", TORCH_BOX(&fused_conv2d));
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d));
  m.impl("grouped_conv2d_backward_input", TORCH_BOX(&grouped_conv2d_backward_input));
  m.impl("grouped_conv2d_backward_weight", TORCH_BOX(&grouped_conv2d_backward_weight));
  m.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
  m.impl("pointwise_conv2d_backward_input", TORCH_BOX(&pointwise_conv2d_backward_input));
  m.impl("pointwise_conv2d_backward_weight", TORCH_BOX(&pointwise_conv2d_backward_weight));
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d));
}

}  // namespace cnnext::bindings

/// The instruction set of the kernels in use, for cnnext.info. Called through ctypes.
extern "C" __attribute__((visibility("default"))) const char* cnnext_cpu_isa() { return cnnext::cpu::kernels().isa; }

/// Gives the free blocks of the output pool back to the system and returns their bytes, for
/// cnnext.backends.empty_cpu_pool. Called through ctypes.
extern "C" __attribute__((visibility("default"))) uint64_t cnnext_cpu_empty_pool() {
  return cnnext::bindings::OutputPool::instance().empty();
}
