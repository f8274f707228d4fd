// The module with the depthwise-separable blocks, and the convolutions that they are made of.
#include <pybind11/stl.h>

#include "../../csrc/cuda/separable.h"
#include "bindings_kernels.h"

namespace {

namespace py = pybind11;
using namespace cnnext;
using namespace cnnext::cuda;

void bind_separable(py::module_& m) {
  py::class_<SeparableProblem>(m, "SeparableProblem", py::module_local())
      .def(py::init<>())
      .def_readwrite("depthwise", &SeparableProblem::depthwise)
      .def_readwrite("outputs", &SeparableProblem::outputs)
      .def_readwrite("y_strides", &SeparableProblem::y_strides)
      .def_property(
          "activation", [](const SeparableProblem& problem) { return static_cast<int>(problem.activation); },
          [](SeparableProblem& problem, int value) { problem.activation = static_cast<Activation>(value); })
      .def_readwrite("has_residual", &SeparableProblem::has_residual)
      .def_readwrite("alignment", &SeparableProblem::alignment)
      .def_readwrite("device", &SeparableProblem::device)
      .def_readwrite("allow_tf32", &SeparableProblem::allow_tf32);
  py::class_<SeparableConfig>(m, "SeparableConfig", py::module_local())
      .def_readwrite("fused", &SeparableConfig::fused)
      .def_readwrite("kernel", &SeparableConfig::kernel)
      .def_readwrite("pointwise", &SeparableConfig::pointwise)
      .def_readonly("microseconds", &SeparableConfig::microseconds)
      .def("__repr__", &SeparableConfig::to_string);
  m.def("separable_configs", &separable_configs);
  m.def("explain_separable", &explain_separable);
  m.def("separable_shared_bytes", [](const SeparableProblem& problem, const LaunchConfig& config) {
    const ConvParams& p = problem.depthwise;
    return separable_layout(config.tile_h, config.tile_w, config.columns, static_cast<int>(p.R),
                            static_cast<int>(p.stride_h), p.C, size_of(p.dtype))
        .shared_bytes;
  });
  m.def("separable_workspace_bytes", &separable_workspace_bytes);
  m.def(
      "separable", [](const SeparableProblem& problem, const SeparableConfig& config, Pointer x, Pointer depthwise_w,
                      Pointer depthwise_bias, Pointer w, Pointer bias, Pointer residual, Pointer y, Pointer workspace) {
        separable(problem, config, {in(x), in(depthwise_w), in(depthwise_bias), in(w), in(bias), in(residual), out(y)},
                  out(workspace), nullptr);
      });
}

}  // namespace

PYBIND11_MODULE(cnnext_emulator_separable, m) {
  bind_emulator(m);
  bind_params(m);
  bind_planning(m);
  bind_depthwise(m);
  bind_grouped(m);
  bind_separable(m);
}
