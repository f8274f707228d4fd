// What the modules of the emulator bind of csrc/cuda.
//
// Pointers are passed as integers. All classes are local to their module: a process may load several builds.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../../csrc/cuda/kernels.h"
#include "bindings_emulator.h"
#include "bindings_params.h"

using Pointer = std::uintptr_t;

inline const void* in(Pointer address) { return reinterpret_cast<const void*>(address); }
inline void* out(Pointer address) { return reinterpret_cast<void*>(address); }

void bind_planning(pybind11::module_& m);
void bind_depthwise(pybind11::module_& m);
void bind_grouped(pybind11::module_& m);
