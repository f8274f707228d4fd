// The planners and launchers of csrc/cuda as a Python module. Pointers are passed as integers.
//
// All classes are local to the module: a process may load several builds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../../csrc/cuda/kernels.h"
#include "../../csrc/cuda/launch_config.h"
#include "../../csrc/cuda/separable.h"
#include "bindings_emulator.h"
#include "bindings_params.h"

namespace {

namespace py = pybind11;
using namespace cnnext;
using namespace cnnext::cuda;

using Pointer = std::uintptr_t;

const void* in(Pointer address) { return reinterpret_cast<const void*>(address); }
void* out(Pointer address) { return reinterpret_cast<void*>(address); }

/// A member that is a C array, as a list.
template <class Class, class T, size_t kCount>
void def_array(py::class_<Class>& c, const char* name, T (Class::*member)[kCount]) {
  using Array = std::array<T, kCount>;
  c.def_property(
      name,
      [=](const Class& object) {
        Array values;
        std::copy_n(object.*member, kCount, values.begin());
        return values;
      },
      [=](Class& object, const Array& values) { std::copy_n(values.begin(), kCount, object.*member); });
}

void bind_planning(py::module_& m) {
  py::class_<DeviceFacts>(m, "DeviceFacts", py::module_local())
      .def(py::init<>())
      .def_readwrite("multiprocessors", &DeviceFacts::multiprocessors)
      .def_readwrite("threads_per_multiprocessor", &DeviceFacts::threads_per_multiprocessor)
      .def_readwrite("shared_bytes_per_multiprocessor", &DeviceFacts::shared_bytes_per_multiprocessor)
      .def_readwrite("shared_bytes_per_block", &DeviceFacts::shared_bytes_per_block)
      .def_readwrite("wgmma", &DeviceFacts::wgmma);
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init<>())
      .def_readwrite("params", &Problem::params)
      .def_readwrite("alignment", &Problem::alignment)
      .def_readwrite("filter_alignment", &Problem::filter_alignment)
      .def_readwrite("device", &Problem::device)
      .def_readwrite("allow_tf32", &Problem::allow_tf32)
      .def_readwrite("filter_channels_last", &Problem::filter_channels_last)
      .def_readwrite("prefer_wgmma", &Problem::prefer_wgmma);

  py::enum_<Kernel> kernels(m, "Kernel", py::module_local());
  for (int i = 0; to_string(static_cast<Kernel>(i)) != std::string("unknown"); ++i) {
    kernels.value(to_string(static_cast<Kernel>(i)), static_cast<Kernel>(i));
  }

  py::class_<LaunchConfig> config(m, "LaunchConfig", py::module_local());
  config.def(py::init<>())
      .def_readwrite("kernel", &LaunchConfig::kernel)
      .def_readwrite("shared_bytes", &LaunchConfig::shared_bytes)
      .def_readwrite("tile_h", &LaunchConfig::tile_h)
      .def_readwrite("tile_w", &LaunchConfig::tile_w)
      .def_readwrite("columns", &LaunchConfig::columns)
      .def_readwrite("vector", &LaunchConfig::vector)
      .def_readwrite("planes", &LaunchConfig::planes)
      .def_readwrite("parts", &LaunchConfig::parts)
      .def_readwrite("tf32", &LaunchConfig::tf32)
      .def_readwrite("packs_filter", &LaunchConfig::packs_filter)
      .def_readwrite("converts", &LaunchConfig::converts)
      .def_readwrite("padded_channels", &LaunchConfig::padded_channels)
      .def_readwrite("padded_outputs", &LaunchConfig::padded_outputs)
      .def("__repr__", &LaunchConfig::to_string);
  def_array(config, "grid", &LaunchConfig::grid);
  def_array(config, "block", &LaunchConfig::block);

  m.def("depthwise_forward_configs", &depthwise_forward_configs);
  m.def("depthwise_backward_input_configs", &depthwise_backward_input_configs);
  m.def("depthwise_backward_weight_configs", &depthwise_backward_weight_configs);
  m.def("grouped_forward_configs", &grouped_forward_configs);
  m.def("grouped_backward_input_configs", &grouped_backward_input_configs);
  m.def("grouped_backward_weight_configs", &grouped_backward_weight_configs);
  m.def("workspace_bytes", &workspace_bytes);
}

void bind_depthwise(py::module_& m) {
  m.def("depthwise_forward",
        [](const ConvParams& params, const LaunchConfig& config, Pointer x, Pointer w, Pointer bias, Pointer y) {
          depthwise_forward(params, config, in(x), in(w), in(bias), out(y), nullptr);
        });
  m.def("depthwise_backward_input",
        [](const ConvParams& params, const LaunchConfig& config, Pointer dy, Pointer w, Pointer dx) {
          depthwise_backward_input(params, config, in(dy), in(w), out(dx), nullptr);
        });
  m.def("depthwise_backward_weight", [](const ConvParams& params, const LaunchConfig& config, Pointer dy, Pointer x,
                                        Pointer dw, Pointer dbias, Pointer workspace) {
    depthwise_backward_weight(params, config, in(dy), in(x), out(dw), out(dbias), out(workspace), nullptr);
  });
}

void bind_grouped(py::module_& m) {
  m.def("grouped_forward", [](const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                              Pointer x, Pointer w, Pointer bias, Pointer y, Pointer workspace) {
    grouped_forward(params, config, filter_channels_last, in(x), in(w), in(bias), out(y), out(workspace), nullptr);
  });
  m.def("grouped_backward_input", [](const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                     Pointer dy, Pointer w, Pointer dx, Pointer workspace) {
    grouped_backward_input(params, config, filter_channels_last, in(dy), in(w), out(dx), out(workspace), nullptr);
  });
  m.def("grouped_backward_weight", [](const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                      Pointer dy, Pointer x, Pointer dw, Pointer dbias, Pointer workspace) {
    grouped_backward_weight(params, config, filter_channels_last, in(dy), in(x), out(dw), out(dbias), out(workspace),
                            nullptr);
  });
}

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

PYBIND11_MODULE(cnnext_emulator_kernels, m) {
  bind_emulator(m);
  bind_params(m);
  bind_planning(m);
  bind_depthwise(m);
  bind_grouped(m);
  bind_separable(m);
}
