// The kernels with wgmma alone, as a module that is compiled in seconds. Operands are channels_last, filters
// [K][R][S][C / groups]; pointers are passed as integers.
#include <pybind11/pybind11.h>

#include "../../csrc/cuda/kernels.h"
#include "bindings_emulator.h"
#include "bindings_params.h"

namespace {

using namespace cnnext;
using namespace cnnext::cuda;

using Pointer = std::uintptr_t;

const void* in(Pointer address) { return reinterpret_cast<const void*>(address); }
void* out(Pointer address) { return reinterpret_cast<void*>(address); }

LaunchConfig with_columns(int tile_columns) {
  LaunchConfig config{};
  config.tile_w = tile_columns;
  return config;
}

}  // namespace

PYBIND11_MODULE(cnnext_emulator_wgmma, m) {
  bind_emulator(m);
  bind_params(m);
  m.def("forward", [](const ConvParams& params, int tile_columns, Pointer x, Pointer w, Pointer bias, Pointer y) {
    grouped_forward_wgmma_nhwc(params, with_columns(tile_columns), in(x), in(w), in(bias), out(y), nullptr);
  });
  m.def("backward_input", [](const ConvParams& params, int tile_columns, Pointer dy, Pointer w, Pointer dx) {
    grouped_backward_input_wgmma_nhwc(params, with_columns(tile_columns), in(dy), in(w), out(dx), nullptr);
  });
}
