// The planners and launchers of convolutions.
#include "bindings_kernels.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>

#include "../../csrc/cuda/launch_config.h"

namespace py = pybind11;
using namespace cnnext;
using namespace cnnext::cuda;

namespace {

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

}  // namespace

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
