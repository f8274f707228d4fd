// The CUDA implementations of cnnext's operators: checks, allocation, and the launch of a kernel from csrc/cuda on
// torch's current stream. Operators without an implementation here run on ATen (cnnext/ops.py).
//
// Memory comes from torch's allocator and nothing here waits for the device, so a CUDA graph can capture every call.
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>

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
    }
    return facts;
  }();
  return all.at(device);
}

/// `x` and `y`: the input and the output of the convolution, or their gradients.
cuda::Problem make_problem(const ConvParams& params, const Tensor& x, const Tensor& y) {
  const auto address =
      reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) | reinterpret_cast<std::uintptr_t>(y.const_data_ptr());
  const int alignment = static_cast<int>(address & 15);
  return {params, alignment == 0 ? 16 : alignment & -alignment, facts_of(x.get_device_index())};
}

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
    // Freed on return, while the kernels may still run: torch hands the memory out again on the same stream only.
    const Tensor workspace =
        torch::stable::new_empty(input, {cuda::workspace_bytes(problem, config)}, torch::headeronly::ScalarType::Byte);
    cuda::depthwise_backward_weight(
        call.params, config, call.dy.const_data_ptr(), call.x.const_data_ptr(), call.grad_weight.mutable_data_ptr(),
        with_bias ? call.grad_bias.mutable_data_ptr() : nullptr, workspace.mutable_data_ptr(), current_stream(input));
    check_launch(config);
  }
  return finish_backward_weight(call);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnext, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d));
  m.impl("depthwise_conv2d_backward_input", TORCH_BOX(&depthwise_conv2d_backward_input));
  m.impl("depthwise_conv2d_backward_weight", TORCH_BOX(&depthwise_conv2d_backward_weight));
}

}  // namespace cnnext::bindings
