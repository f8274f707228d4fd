// The module with the convolutions.
#include "bindings_kernels.h"

PYBIND11_MODULE(cnnext_emulator_convolutions, m) {
  bind_emulator(m);
  bind_params(m);
  bind_planning(m);
  bind_depthwise(m);
  bind_grouped(m);
}
