// The CUDA implementations of cnnext's operators: checks, allocation, and the launch of a kernel from csrc/cuda on
// torch's current stream.
//
// Memory comes from torch's allocator and nothing here waits for the device, so a CUDA graph can capture every call.
#include <Python.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "../cuda/kernels.h"
#include "../cuda/separable.h"
#include "problem.h"

namespace cnnext::bindings {
namespace {

using torch::stable::accelerator::DeviceGuard;

cuda::Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cuda::Stream>(stream);
}

void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, what, " failed: ", cudaGetErrorString(error));
}

template <class Config>
void check_launch(const Config& config) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "launch of a CUDA kernel failed: ", cudaGetErrorString(error), " (",
                  config.to_string(), ")");
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, name, device), "cudaDeviceGetAttribute");
  return value;
}

/// The facts of a device never change; they are asked for once.
const cuda::DeviceFacts& facts_of(int device) {
  static const std::vector<cuda::DeviceFacts> all = [] {
    int count = 0;
    check_cuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    std::vector<cuda::DeviceFacts> facts(count);
    for (int i = 0; i < count; ++i) {
      facts[i].multiprocessors = attribute(cudaDevAttrMultiProcessorCount, i);
      facts[i].threads_per_multiprocessor = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, i);
      facts[i].shared_bytes_per_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, i);
      facts[i].shared_bytes_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, i);
#ifdef CNNEXT_WITH_WGMMA
      facts[i].wgmma =
          attribute(cudaDevAttrComputeCapabilityMajor, i) == 9 && attribute(cudaDevAttrComputeCapabilityMinor, i) == 0;
#endif
      facts[i].registers_per_multiprocessor = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, i);
      facts[i].l2_bytes = attribute(cudaDevAttrL2CacheSize, i);
      // In kHz and bits; a driver may not tell the clocks. Memory makes two transfers a clock, of which a copy gets
      // about nine tenths.
      if (const int clock = attribute(cudaDevAttrClockRate, i)) facts[i].clock_ghz = clock / 1e6;
      const double transfers = 2.0 * attribute(cudaDevAttrMemoryClockRate, i);
      const double peak = transfers * attribute(cudaDevAttrGlobalMemoryBusWidth, i) / 8 / 1e6;
      if (peak > 0) facts[i].copy_gigabytes_per_second = 0.9 * peak;
    }
    return facts;
  }();
  return all.at(device);
}

/// The largest power of two, at most 16, that divides a tensor's address in bytes.
int alignment_of(const Tensor& tensor) {
  const int rest = static_cast<int>(reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr()) & 15);
  return rest == 0 ? 16 : rest & -rest;
}

/// `x` and `y`: the input and the output of the convolution, or their gradients.
cuda::Problem make_problem(const ConvParams& params, const Tensor& x, const Tensor& y) {
  return {params, std::min(alignment_of(x), alignment_of(y)), 16, facts_of(x.get_device_index())};
}

/// Whether float32 may be rounded to TF32: PyTorch's setting, which only Python can read through a stable interface.
/// Where it cannot be read, float32 stays float32.
bool python_allows_tf32() {
  if (!Py_IsInitialized()) return false;
  const PyGILState_STATE state = PyGILState_Ensure();
  bool allowed = false;
  if (PyObject* module = PyImport_ImportModule("cnnext.backends.cuda")) {
    if (PyObject* answer = PyObject_CallMethod(module, "allows_tf32", nullptr)) {
      allowed = PyObject_IsTrue(answer) == 1;
      Py_DECREF(answer);
    }
    Py_DECREF(module);
  }
  if (PyErr_Occurred()) PyErr_Clear();
  PyGILState_Release(state);
  return allowed;
}

/// Bytes of scratch memory, or nothing. Freed on return, while the kernels may still run: torch hands the memory out
/// again on the same stream only.
Tensor make_workspace(int64_t bytes, const Tensor& like) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

// --- Depthwise ---

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                        IntList padding, IntList dilation, int64_t activation) {
  const DeviceGuard guard(input.get_device_index());
  const ForwardCall call = prepare_forward(Family::kDepthwise, input, weight, bias,
                                           make_geometry(stride, padding, dilation), kDepthwiseGroups, activation);
  if (call.params.N > 0) {
    const cuda::LaunchConfig config =
        cuda::depthwise_forward_configs(make_problem(call.params, call.x, call.output)).front();
    cuda::depthwise_forward(call.params, config, call.x.const_data_ptr(), call.w.const_data_ptr(),
                            call.bias ? call.bias->const_data_ptr() : nullptr, call.output.mutable_data_ptr(),
                            current_stream(input));
    check_launch(config);
  }
  return call.output;
}

Tensor depthwise_conv2d_backward_input(const Tensor& grad_output, const Tensor& weight, IntList input_size,
                                       IntList stride, IntList padding, IntList dilation, bool channels_last) {
  const DeviceGuard guard(grad_output.get_device_index());
  const BackwardInputCall call =
      prepare_backward_input(Family::kDepthwise, grad_output, weight, input_size,
                             make_geometry(stride, padding, dilation), kDepthwiseGroups, channels_last);
  if (call.params.N > 0) {
    const cuda::LaunchConfig config =
        cuda::depthwise_backward_input_configs(make_problem(call.params, call.grad_input, call.dy)).front();
    cuda::depthwise_backward_input(call.params, config, call.dy.const_data_ptr(), call.w.const_data_ptr(),
                                   call.grad_input.mutable_data_ptr(), current_stream(grad_output));
    check_launch(config);
  }
  return call.grad_input;
}

std::tuple<Tensor, Tensor> depthwise_conv2d_backward_weight(const Tensor& grad_output, const Tensor& input,
                                                            IntList weight_size, IntList stride, IntList padding,
                                                            IntList dilation, bool with_bias, bool channels_last) {
  const DeviceGuard guard(input.get_device_index());
  const BackwardWeightCall call =
      prepare_backward_weight(Family::kDepthwise, grad_output, input, weight_size,
                              make_geometry(stride, padding, dilation), kDepthwiseGroups, with_bias, channels_last);
  if (call.params.N > 0) {
    const cuda::Problem problem = make_problem(call.params, call.x, call.dy);
    const cuda::LaunchConfig config = cuda::depthwise_backward_weight_configs(problem).front();
    const Tensor workspace = make_workspace(cuda::workspace_bytes(problem, config), input);
    cuda::depthwise_backward_weight(
        call.params, config, call.dy.const_data_ptr(), call.x.const_data_ptr(), call.grad_weight.mutable_data_ptr(),
        with_bias ? call.grad_bias.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(), current_stream(input));
    check_launch(config);
  }
  return finish_backward_weight(call);
}

// --- Grouped, dense and 1x1 ---

/// Whether CNNEXT_PREFER_WGMMA asks for the kernels with wgmma wherever they can run.
bool environment_prefers_wgmma() {
  const char* value = std::getenv("CNNEXT_PREFER_WGMMA");
  return value != nullptr && std::string(value) == "1";
}

/// Adds what only these planners ask for.
cuda::Problem make_grouped_problem(const ConvParams& params, const Tensor& x, const Tensor& y, const Tensor& filter) {
  cuda::Problem problem = make_problem(params, x, y);
  problem.filter_channels_last = is_channels_last_only(filter);
  problem.filter_alignment = alignment_of(filter);
  problem.allow_tf32 = params.dtype == DType::kFloat32 && python_allows_tf32();
  problem.prefer_wgmma = environment_prefers_wgmma();
  return problem;
}

Tensor forward(Family family, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
               const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
               int64_t activation) {
  const DeviceGuard guard(input.get_device_index());
  const ForwardCall call = prepare_forward(family, input, weight, bias, make_geometry(stride, padding, dilation),
                                           groups, activation, FilterOrder::kAny);
  if (call.params.N > 0) {
    const cuda::Problem problem = make_grouped_problem(call.params, call.x, call.output, call.w);
    const cuda::LaunchConfig config = cuda::grouped_forward_configs(problem).front();
    const Tensor workspace = make_workspace(cuda::workspace_bytes(problem, config), input);
    cuda::grouped_forward(call.params, config, problem.filter_channels_last, call.x.const_data_ptr(),
                          call.w.const_data_ptr(), call.bias ? call.bias->const_data_ptr() : nullptr,
                          call.output.mutable_data_ptr(), workspace.mutable_data_ptr(), current_stream(input));
    check_launch(config);
  }
  return call.output;
}

Tensor backward_input(Family family, const Tensor& grad_output, const Tensor& weight, const IntList& input_size,
                      const IntList& stride, const IntList& padding, const IntList& dilation, int64_t groups,
                      bool channels_last) {
  const DeviceGuard guard(grad_output.get_device_index());
  const BackwardInputCall call =
      prepare_backward_input(family, grad_output, weight, input_size, make_geometry(stride, padding, dilation), groups,
                             channels_last, FilterOrder::kAny);
  if (call.params.N > 0) {
    const cuda::Problem problem = make_grouped_problem(call.params, call.grad_input, call.dy, call.w);
    const cuda::LaunchConfig config = cuda::grouped_backward_input_configs(problem).front();
    const Tensor workspace = make_workspace(cuda::workspace_bytes(problem, config), grad_output);
    cuda::grouped_backward_input(call.params, config, problem.filter_channels_last, call.dy.const_data_ptr(),
                                 call.w.const_data_ptr(), call.grad_input.mutable_data_ptr(),
                                 workspace.mutable_data_ptr(), current_stream(grad_output));
    check_launch(config);
  }
  return call.grad_input;
}

std::tuple<Tensor, Tensor> backward_weight(Family family, const Tensor& grad_output, const Tensor& input,
                                           const IntList& weight_size, const IntList& stride, const IntList& padding,
                                           const IntList& dilation, int64_t groups, bool with_bias,
                                           bool channels_last) {
  const DeviceGuard guard(input.get_device_index());
  const BackwardWeightCall call =
      prepare_backward_weight(family, grad_output, input, weight_size, make_geometry(stride, padding, dilation), groups,
                              with_bias, channels_last, FilterOrder::kAny);
  if (call.params.N > 0) {
    const cuda::Problem problem = make_grouped_problem(call.params, call.x, call.dy, call.grad_weight);
    const cuda::LaunchConfig config = cuda::grouped_backward_weight_configs(problem).front();
    const Tensor workspace = make_workspace(cuda::workspace_bytes(problem, config), input);
    cuda::grouped_backward_weight(call.params, config, problem.filter_channels_last, call.dy.const_data_ptr(),
                                  call.x.const_data_ptr(), call.grad_weight.mutable_data_ptr(),
                                  with_bias ? call.grad_bias.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(),
                                  current_stream(input));
    check_launch(config);
  }
  return finish_backward_weight(call);
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

// --- The depthwise-separable block of inference ---

/// The largest power of two, at most 16, that divides all of these addresses.
template <class... Pointers>
int common_alignment(Pointers... pointers) {
  const int rest = static_cast<int>((reinterpret_cast<std::uintptr_t>(pointers) | ...) & 15);
  return rest == 0 ? 16 : rest & -rest;
}

const void* data_of(const std::optional<Tensor>& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

/// `tensor` if it has these strides, else a copy that has them. They are those of a dense tensor in `layout`.
Tensor with_strides_of(const Tensor& tensor, const Tensor& like, Layout layout) {
  if (strides_of(tensor) == strides_of(like)) return tensor;
  Tensor copy = empty_dense(sizes_of(tensor), layout, tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor separable_conv2d(const Tensor& input, const Tensor& depthwise_weight,
                        const std::optional<Tensor>& depthwise_bias, const Tensor& weight,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& residual_argument,
                        const std::optional<Tensor>&, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                        int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t depthwise_activation,
                        int64_t activation) {
  const DeviceGuard guard(input.get_device_index());
  check_4d(input, "input");
  cuda::SeparableProblem problem;
  ConvParams& depthwise = problem.depthwise;
  depthwise =
      make_forward_params(Family::kDepthwise, input, sizes_of(input), depthwise_weight,
                          check_geometry({{stride_h, stride_w}, {padding_h, padding_w}, {dilation_h, dilation_w}}),
                          kDepthwiseGroups, depthwise_activation);
  const ConvParams pointwise =
      make_forward_params(Family::kPointwise, input, {depthwise.N, depthwise.K, depthwise.P, depthwise.Q}, weight,
                          {{1, 1}, {0, 0}, {1, 1}}, 1, activation);
  const bool channels_last = output_layout(input, depthwise_weight) == Layout::kNHWC ||
                             suggested_layout(sizes_of(weight), strides_of(weight)) == Layout::kNHWC;
  const Layout layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  const Tensor x = with_unit_stride(input, layout);
  const Tensor depthwise_w = as_contiguous(depthwise_weight), w = as_contiguous(weight);
  const std::optional<Tensor> depthwise_b = make_bias(depthwise_bias, depthwise.K, input);
  const std::optional<Tensor> b = make_bias(bias, pointwise.K, input);
  const Tensor output = empty_dense({pointwise.N, pointwise.K, pointwise.P, pointwise.Q}, layout, input);
  std::optional<Tensor> residual;
  if (residual_argument.has_value()) {
    check_residual(*residual_argument, output);
    residual = with_strides_of(*residual_argument, output, layout);
  }
  if (depthwise.N == 0) return output;

  depthwise.layout = layout;
  depthwise.x_strides = kernel_strides(x, layout);
  problem.outputs = pointwise.K, problem.y_strides = kernel_strides(output, layout);
  problem.activation = pointwise.activation;
  problem.has_residual = residual.has_value();
  const cuda::SeparableOperands operands{
      x.const_data_ptr(), depthwise_w.const_data_ptr(), data_of(depthwise_b), w.const_data_ptr(), data_of(b),
      data_of(residual),  output.mutable_data_ptr()};
  problem.alignment = common_alignment(operands.x, operands.depthwise_w, operands.depthwise_bias, operands.w,
                                       operands.bias, operands.residual, operands.y);
  problem.device = facts_of(input.get_device_index());
  problem.allow_tf32 = depthwise.dtype == DType::kFloat32 && python_allows_tf32();
  const cuda::SeparableConfig config = cuda::separable_configs(problem).front();
  const Tensor workspace = make_workspace(cuda::separable_workspace_bytes(problem, config), input);
  cuda::separable(problem, config, operands, workspace.mutable_data_ptr(), current_stream(input));
  check_launch(config);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnext, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward_input", TORCH_BOX(&depthwise_conv2d_backward_input));
  m.impl("depthwise_conv2d_backward_weight", TORCH_BOX(&depthwise_conv2d_backward_weight));
  m.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d));
  m.impl("grouped_conv2d_backward_input", TORCH_BOX(&grouped_conv2d_backward_input));
  m.impl("grouped_conv2d_backward_weight", TORCH_BOX(&grouped_conv2d_backward_weight));
  m.impl("pointwise_conv2d", TORCH_BOX(&pointwise_conv2d));
  m.impl("pointwise_conv2d_backward_input", TORCH_BOX(&pointwise_conv2d_backward_input));
  m.impl("pointwise_conv2d_backward_weight", TORCH_BOX(&pointwise_conv2d_backward_weight));
  m.impl("separable_conv2d", TORCH_BOX(&separable_conv2d));
}

}  // namespace cnnext::bindings

/// Says how a depthwise-separable block of float32, float16 or bfloat16 (by DType) would run on a device, and why, for
/// cnnext.backends.explain. `values`: device; N, C, H, W; M, R, S; stride, padding and dilation as height, width; K;
/// strides of the input (n, c, h, w); whether the block is channels_last; dtype; alignment of the operands; whether
/// TF32 is allowed. Called through ctypes; valid until the thread's next call.
extern "C" __attribute__((visibility("default"))) const char* cnnext_cuda_explain_separable(const int64_t* values) {
  namespace cuda = cnnext::cuda;
  thread_local std::string text;
  const int64_t* v = values + 1;
  cuda::SeparableProblem problem;
  cnnext::ConvParams& p = problem.depthwise;
  p.N = v[0], p.C = p.groups = v[1], p.H = v[2], p.W = v[3], p.K = v[4], p.R = v[5], p.S = v[6];
  p.stride_h = v[7], p.stride_w = v[8], p.pad_h = v[9], p.pad_w = v[10], p.dilation_h = v[11], p.dilation_w = v[12];
  p.P = (p.H + 2 * p.pad_h - p.dilation_h * (p.R - 1) - 1) / p.stride_h + 1;
  p.Q = (p.W + 2 * p.pad_w - p.dilation_w * (p.S - 1) - 1) / p.stride_w + 1;
  problem.outputs = v[13];
  p.x_strides = {v[14], v[15], v[16], v[17]};
  p.layout = v[18] != 0 ? cnnext::Layout::kNHWC : cnnext::Layout::kNCHW;
  p.dtype = static_cast<cnnext::DType>(v[19]);
  problem.alignment = static_cast<int>(v[20]), problem.allow_tf32 = v[21] != 0;
  const int64_t k = problem.outputs;
  problem.y_strides = p.layout == cnnext::Layout::kNHWC ? cnnext::Strides4{p.P * p.Q * k, 1, p.Q * k, k}
                                                        : cnnext::Strides4{k * p.P * p.Q, p.P * p.Q, p.Q, 1};
  try {
    problem.device = cnnext::bindings::facts_of(static_cast<int>(values[0]));
    text = cuda::explain_separable(problem);
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}
