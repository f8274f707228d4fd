// The launchers and planners of csrc/cuda as a Python module. Pointers are passed as integers.
#include <pybind11/pybind11.h>

#include "../../csrc/cuda/kernels.h"
#include "../../csrc/cuda/launch_config.h"

namespace {

namespace py = pybind11;
using cnnext::ConvParams;

void* pointer(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

PYBIND11_MODULE(CNNEXT_EMULATOR_MODULE, m) {
  py::enum_<cnnext::DType>(m, "DType")
      .value("float32", cnnext::DType::kFloat32)
      .value("float64", cnnext::DType::kFloat64)
      .value("float16", cnnext::DType::kFloat16)
      .value("bfloat16", cnnext::DType::kBFloat16);
  py::enum_<cnnext::Layout>(m, "Layout").value("nchw", cnnext::Layout::kNCHW).value("nhwc", cnnext::Layout::kNHWC);
  py::class_<cnnext::Strides4>(m, "Strides4").def(py::init([](int64_t n, int64_t c, int64_t h, int64_t w) {
    return cnnext::Strides4{n, c, h, w};
  }));
  py::class_<ConvParams>(m, "ConvParams")
      .def(py::init<>())
      .def_readwrite("N", &ConvParams::N)
      .def_readwrite("C", &ConvParams::C)
      .def_readwrite("H", &ConvParams::H)
      .def_readwrite("W", &ConvParams::W)
      .def_readwrite("K", &ConvParams::K)
      .def_readwrite("R", &ConvParams::R)
      .def_readwrite("S", &ConvParams::S)
      .def_readwrite("P", &ConvParams::P)
      .def_readwrite("Q", &ConvParams::Q)
      .def_readwrite("groups", &ConvParams::groups)
      .def_readwrite("stride_h", &ConvParams::stride_h)
      .def_readwrite("stride_w", &ConvParams::stride_w)
      .def_readwrite("pad_h", &ConvParams::pad_h)
      .def_readwrite("pad_w", &ConvParams::pad_w)
      .def_readwrite("dilation_h", &ConvParams::dilation_h)
      .def_readwrite("dilation_w", &ConvParams::dilation_w)
      .def_readwrite("x_strides", &ConvParams::x_strides)
      .def_readwrite("y_strides", &ConvParams::y_strides)
      .def_readwrite("layout", &ConvParams::layout)
      .def_readwrite("dtype", &ConvParams::dtype)
      .def_property(
          "activation", [](const ConvParams& params) { return static_cast<int>(params.activation); },
          [](ConvParams& params, int value) { params.activation = static_cast<cnnext::Activation>(value); });

  py::class_<cnnext::cuda::LaunchConfig>(m, "LaunchConfig")
      .def_readonly("blocks", &cnnext::cuda::LaunchConfig::blocks)
      .def_readonly("threads", &cnnext::cuda::LaunchConfig::threads)
      .def("__repr__", &cnnext::cuda::LaunchConfig::to_string);
  m.def("plan_depthwise_forward_general", &cnnext::cuda::plan_depthwise_forward_general);

  m.def("depthwise_forward_general",
        [](const ConvParams& params, std::uintptr_t x, std::uintptr_t w, std::uintptr_t bias, std::uintptr_t y) {
          cnnext::cuda::depthwise_forward_general(params, pointer(x), pointer(w), pointer(bias), pointer(y), nullptr);
        });
}
