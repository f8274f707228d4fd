// Tensor maps: what the tensor memory accelerator (TMA) of sm_90 has to know of a tensor in global memory in order to
// copy a tile of it to shared memory by itself. Made on the host, passed to a kernel as a __grid_constant__ parameter.
//
// Elements have 16 bits; a tile's lines have kTensorMapLine of them, 128 bytes, and lie in shared memory with the
// 128-byte swizzle: 16-byte piece c of the line at address a lies at piece c ^ (a / 128 % 8). What a tile has outside
// of its tensor arrives as zeros.
#pragma once

#include <cstdint>

#include "../conv_params.h"

namespace cnnext::cuda {

/// Elements in a line of a tile.
constexpr int kTensorMapLine = 64;

/// Tiles in shared memory start at multiples of this, where the pattern of the swizzle does.
constexpr int kSwizzleAlignment = 1024;

/// Tiles of a matrix of matrices, [sizes[2]][sizes[1]][sizes[0]] with the last index contiguous: `lines` indices of the
/// first dimension, one of the second, kTensorMapLine of the last.
struct TiledTensor {
  const void* address;  // 16-byte aligned
  int64_t sizes[3];     // the contiguous dimension first
  int64_t strides[2];   // of the other two, in elements; multiples of 8
  int lines;            // at most 256
};

/// Columns of pixels of an image batch, [n][h][w][c] with c contiguous ("im2col" mode): `pixels` pixels, which follow
/// each other as the outputs of a convolution do, with kTensorMapLine channels each.
///
/// A walk visits lower + i * step, i < outputs, of each axis, w fastest, then h, then n; what it reads there lies
/// `offset` further along each axis, an operand of the copy.
struct PixelColumns {
  const void* address;  // 16-byte aligned
  int64_t channels, width, height, images;
  int64_t stride_w, stride_h, stride_n;  // in elements; multiples of 8
  int lower_w, lower_h;                  // -128 to 127
  int step_w, step_h;                    // 1 to 8
  int outputs_w, outputs_h;
  int pixels;  // at most 1024

  // The far corners of the box that the walk stays in, counted from the last pixel of the image; -128 to 127.
  int upper_w() const { return static_cast<int>(lower_w + int64_t{outputs_w - 1} * step_w + 1 - width); }
  int upper_h() const { return static_cast<int>(lower_h + int64_t{outputs_h - 1} * step_h + 1 - height); }
};

/// Largest offset of a copy of PixelColumns.
constexpr int kMaxPixelOffset = 255;

}  // namespace cnnext::cuda

#ifdef __CUDACC__

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace cnnext::cuda {

struct TensorMap {
  CUtensorMap opaque;
};

/// The driver's function `name`, asked for at run time: linking to libcuda would keep the library from being loaded
/// where there is no driver.
template <class Function>
Function driver_function(const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    throw std::runtime_error(std::string("the CUDA driver has no ") + name + "; it is too old for tensor maps");
  }
  return reinterpret_cast<Function>(address);
}

inline void check_tensor_map(CUresult result, const char* function) {
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(function) + " failed with error " + std::to_string(result));
  }
}

inline CUtensorMapDataType tensor_map_type(DType dtype) {
  return dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

inline TensorMap make_tensor_map(const TiledTensor& tensor, DType dtype) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  cuuint64_t sizes[3], strides[2];
  for (int i = 0; i < 3; ++i) sizes[i] = static_cast<cuuint64_t>(tensor.sizes[i]);
  for (int i = 0; i < 2; ++i) strides[i] = static_cast<cuuint64_t>(tensor.strides[i]) * 2;
  const cuuint32_t box[3] = {kTensorMapLine, 1, static_cast<cuuint32_t>(tensor.lines)};
  const cuuint32_t steps[3] = {1, 1, 1};
  TensorMap map;
  check_tensor_map(encode(&map.opaque, tensor_map_type(dtype), 3, const_cast<void*>(tensor.address), sizes, strides,
                          box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                          CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
                   "cuTensorMapEncodeTiled");
  return map;
}

inline TensorMap make_tensor_map(const PixelColumns& tensor, DType dtype) {
  static const auto encode = driver_function<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  const auto size = [](int64_t value) { return static_cast<cuuint64_t>(value); };
  const cuuint64_t sizes[4] = {size(tensor.channels), size(tensor.width), size(tensor.height), size(tensor.images)};
  const cuuint64_t strides[3] = {size(tensor.stride_w) * 2, size(tensor.stride_h) * 2, size(tensor.stride_n) * 2};
  const int lower[2] = {tensor.lower_w, tensor.lower_h}, upper[2] = {tensor.upper_w(), tensor.upper_h()};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(tensor.step_w), static_cast<cuuint32_t>(tensor.step_h), 1};
  TensorMap map;
  check_tensor_map(
      encode(&map.opaque, tensor_map_type(dtype), 4, const_cast<void*>(tensor.address), sizes, strides, lower, upper,
             kTensorMapLine, static_cast<cuuint32_t>(tensor.pixels), steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeIm2col");
  return map;
}

}  // namespace cnnext::cuda

#else
#include "emulator_tensor_map.h"
#endif
