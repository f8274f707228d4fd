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

void check_launch(const cuda::LaunchConfig& config) {
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
}

}  // namespace cnnext::bindings
