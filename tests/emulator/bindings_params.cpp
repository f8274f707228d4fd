#include "bindings_params.h"

#include "../../csrc/conv_params.h"

namespace py = pybind11;
using namespace cnnext;

void bind_params(py::module_& m) {
  py::enum_<DType>(m, "DType", py::module_local())
      .value("float32", DType::kFloat32)
      .value("float64", DType::kFloat64)
      .value("float16", DType::kFloat16)
      .value("bfloat16", DType::kBFloat16);
  py::enum_<Layout>(m, "Layout", py::module_local()).value("nchw", Layout::kNCHW).value("nhwc", Layout::kNHWC);
  py::class_<Strides4>(m, "Strides4", py::module_local())
      .def(py::init<int64_t, int64_t, int64_t, int64_t>())
      .def_readwrite("n", &Strides4::n)
      .def_readwrite("c", &Strides4::c)
      .def_readwrite("h", &Strides4::h)
      .def_readwrite("w", &Strides4::w);
  py::class_<ConvParams>(m, "ConvParams", py::module_local())
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
          [](ConvParams& params, int value) { params.activation = static_cast<Activation>(value); });
}
