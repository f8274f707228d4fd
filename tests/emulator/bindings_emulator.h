// What every module of the emulator offers to Python beside its kernels.
#pragma once

#include <pybind11/pybind11.h>

void bind_emulator(pybind11::module_& m);
