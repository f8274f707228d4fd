// The CUDA implementations of cnnext's operators: checks, allocation, and the launch of a kernel from csrc/cuda on
// torch's current stream. Operators without an implementation here run on ATen (cnnext/ops.py).
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
#include "problem.h"

namespace cnnext::bindings {
namespace {

cuda::Stream current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cuda::Stream>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "launch of a CUDA kernel failed: ", cudaGetErrorString(error));
}

Tensor depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, IntList stride,
                        IntList padding, IntList dilation, int64_t activation) {
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const ForwardCall call = prepare_forward(Family::kDepthwise, input, weight, bias,
                                           make_geometry(stride, padding, dilation), kDepthwiseGroups, activation);
  if (call.params.N > 0) {
    cuda::depthwise_forward_general(call.params, call.x.const_data_ptr(), call.w.const_data_ptr(),
                                    call.bias ? call.bias->const_data_ptr() : nullptr, call.output.mutable_data_ptr(),
                                    current_stream(input));
    check_launch();
  }
  return call.output;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cnnext, CUDA, m) { m.impl("depthwise_conv2d", TORCH_BOX(&depthwise_conv2d)); }

}  // namespace cnnext::bindings
