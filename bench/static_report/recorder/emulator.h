// What csrc/cuda/portability.h includes in the recorder: the emulator, but a launch is written down instead of run.
#pragma once

// The emulator's own `launch` goes by another name.
#define launch emulator_launch
#include "../../../tests/emulator/emulator.h"
#undef launch

#include <vector>

namespace cnnext::static_report {

/// A launch as the host code makes it.
struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  std::vector<unsigned char> parameters;  // as they lie in constant memory
};

inline std::vector<Launch> launches;

/// Appends a parameter where a C++ struct would have it, which is where CUDA has it.
template <class Param>
void append(std::vector<unsigned char>& parameters, const Param& value) {
  const size_t offset = (parameters.size() + alignof(Param) - 1) / alignof(Param) * alignof(Param);
  parameters.resize(offset + sizeof(Param));
  memcpy(parameters.data() + offset, &value, sizeof(Param));
}

}  // namespace cnnext::static_report

namespace cnnext::cuda {

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, const Args&... args) {
  static_report::Launch record{reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, {}};
  (static_report::append(record.parameters, static_cast<Params>(args)), ...);
  static_report::launches.push_back(std::move(record));
}

}  // namespace cnnext::cuda
