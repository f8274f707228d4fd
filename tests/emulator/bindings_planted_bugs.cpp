// The kernels of planted_bugs.cu as a Python module. Operands are allocated here, so that nothing lies behind them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <new>

#include "bindings_emulator.h"
#include "memory.h"
#include "planted_bugs.h"

namespace {

namespace py = pybind11;
using namespace cnnext::planted_bugs;

/// Exactly `count` floats, aligned as cudaMalloc does.
class Floats {
 public:
  static constexpr std::align_val_t kAlignment{256};

  explicit Floats(int count) : data_(static_cast<float*>(operator new(count * sizeof(float), kAlignment))) {}
  ~Floats() { operator delete(data_, kAlignment); }
  Floats(const Floats&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

/// Calls `launch(x, y)` with `inputs` floats 0, 1, 2, ... and `outputs` floats, which are returned.
template <class Launch>
std::vector<float> with_operands(int inputs, int outputs, const Launch& launch) {
  const Floats x(inputs), y(outputs);
  for (int i = 0; i < inputs; ++i) x.get()[i] = static_cast<float>(i);
  std::fill_n(y.get(), outputs, 0.0f);
  cnnext::emulator::clear_buffers();
  cnnext::emulator::register_buffer(reinterpret_cast<uintptr_t>(x.get()), inputs * sizeof(float), false, "x");
  cnnext::emulator::register_buffer(reinterpret_cast<uintptr_t>(y.get()), outputs * sizeof(float), true, "y");
  launch(x.get(), y.get());
  return {y.get(), y.get() + outputs};
}

std::vector<std::string> names() {
  std::vector<std::string> result;
  for (const Bug& bug : bugs()) result.push_back(bug.name);
  return result;
}

std::vector<float> run(const std::string& name, bool planted) {
  for (const Bug& bug : bugs()) {
    if (bug.name != name) continue;
    return with_operands(kCount, kCount, [&](const float* x, float* y) { bug.launch(planted, x, y); });
  }
  throw py::value_error("no bug is called " + name);
}

}  // namespace

PYBIND11_MODULE(cnnext_emulator_planted_bugs, m) {
  bind_emulator(m);
  m.def("names", &names);
  m.def("run", &run, py::arg("name"), py::arg("planted"));
  m.def("thread_order", [] { return with_operands(1, kThreads, [](const float*, float* y) { thread_order(y); }); });
  m.def("strided_reads", [](int vector, int stride) {
    return with_operands(32 * vector * stride, 32,
                         [&](const float* x, float* y) { strided_reads(vector, stride, x, y); });
  });
  m.def("fma_bits", &fma_bits);
  m.def("empty_launch", &empty_launch);
}
