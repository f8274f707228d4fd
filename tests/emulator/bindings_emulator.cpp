#include "bindings_emulator.h"

#include <map>
#include <stdexcept>
#include <string>

#include "memory.h"
#include "scheduler.h"

namespace py = pybind11;
using namespace cnnext::emulator;

// While kernels are being written: what a launcher that is not there yet does.
extern "C" void cnnext_emulator_missing() { throw std::runtime_error("this kernel is not in this build"); }

namespace {

void set_schedule_by_name(const std::string& order, uint64_t seed) {
  const std::map<std::string, Order> orders = {
      {"random", Order::kRandom}, {"ascending", Order::kAscending}, {"descending", Order::kDescending}};
  const auto found = orders.find(order);
  if (found == orders.end()) throw py::value_error("order is random, ascending or descending, not " + order);
  set_schedule(found->second, seed);
}

}  // namespace

void bind_emulator(py::module_& m) {
  m.def("set_schedule", &set_schedule_by_name, py::arg("order") = "random", py::arg("seed") = 0,
        "Decides the order of threads in the launches to come: random, ascending or descending.");
  m.def("register_buffer", &register_buffer, py::arg("address"), py::arg("bytes"), py::arg("writable"), py::arg("name"),
        "Global memory that launches may access; the checked build refuses any other.");
  m.def("clear_buffers", &clear_buffers, "Forgets all registered buffers.");
}
