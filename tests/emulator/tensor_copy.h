// The copies of the tensor memory accelerator (csrc/cuda/tensor_map.h): from a tile of a tensor in global memory to
// lines of 128 bytes in shared memory, swizzled, with zeros for what lies outside of the tensor.
#pragma once

#include <cstdint>

#include "place.h"
#include "tensor_map.h"

namespace cnnext::emulator {

/// Start a copy whose bytes `barrier` counts. It lands at once, or only when somebody waits for the barrier.
void copy_tile(void* shared, const TensorMap& map, const uint64_t* barrier, const int (&index)[3], const Place& place);
void copy_pixels(void* shared, const TensorMap& map, const uint64_t* barrier, int channel, int w, int h, int n,
                 int offset_w, int offset_h, const Place& place);

}  // namespace cnnext::emulator
