// ConvParams and what it is made of, for the modules that take them.
#pragma once

#include <pybind11/pybind11.h>

void bind_params(pybind11::module_& m);
