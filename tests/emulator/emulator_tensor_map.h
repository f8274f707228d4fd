// Tensor maps on the CPU: plain structures, made under the conditions that the driver names. Included by
// csrc/cuda/tensor_map.h.
#pragma once

namespace cnnext::emulator {

/// One of the two kinds; on a GPU 128 bytes that only the hardware reads.
struct TensorMap {
  enum class Kind { kNone, kTiled, kPixels } kind = Kind::kNone;
  cuda::TiledTensor tiled;
  cuda::PixelColumns pixels;
};

/// Both throw std::runtime_error where the driver would refuse.
TensorMap make_tiled_map(const cuda::TiledTensor& tensor);
TensorMap make_pixel_map(const cuda::PixelColumns& tensor);

}  // namespace cnnext::emulator

namespace cnnext::cuda {

using TensorMap = emulator::TensorMap;

inline TensorMap make_tensor_map(const TiledTensor& tensor, DType) { return emulator::make_tiled_map(tensor); }
inline TensorMap make_tensor_map(const PixelColumns& tensor, DType) { return emulator::make_pixel_map(tensor); }

}  // namespace cnnext::cuda
