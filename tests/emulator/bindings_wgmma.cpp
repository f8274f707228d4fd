// The kernels with wgmma alone, as a module that is compiled in seconds. Operands are channels_last, filters
// [K][R][S][C / groups]; pointers are passed as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "bindings_kernels.h"

namespace {

namespace py = pybind11;
using namespace cnnext;
using namespace cnnext::cuda;

LaunchConfig make_config(int tile_columns, const std::array<int64_t, 3>& grid, int shared_bytes) {
  LaunchConfig config{};
  config.tile_w = tile_columns, config.shared_bytes = shared_bytes;
  std::copy(grid.begin(), grid.end(), config.grid);
  return config;
}

}  // namespace

PYBIND11_MODULE(cnnext_emulator_wgmma, m) {
  bind_emulator(m);
  bind_params(m);
  py::class_<LaunchConfig>(m, "LaunchConfig", py::module_local())
      .def(py::init(&make_config), py::arg("tile_columns"), py::arg("grid"), py::arg("shared_bytes"));
  m.def("forward",
        [](const ConvParams& params, const LaunchConfig& config, Pointer x, Pointer w, Pointer bias, Pointer y) {
          grouped_forward_wgmma_nhwc(params, config, in(x), in(w), in(bias), out(y), nullptr);
        });
  m.def("backward_input", [](const ConvParams& params, const LaunchConfig& config, Pointer dy, Pointer w, Pointer dx) {
    grouped_backward_input_wgmma_nhwc(params, config, in(dy), in(w), out(dx), nullptr);
  });
}
