#include "bindings_emulator.h"

#include <pybind11/stl.h>

#include <map>
#include <string>

#include "memory.h"
#include "scheduler.h"
#include "statistics.h"

namespace py = pybind11;
using namespace cnnext::emulator;

namespace {

void set_schedule_by_name(const std::string& order, uint64_t seed) {
  const std::map<std::string, Order> orders = {
      {"random", Order::kRandom}, {"ascending", Order::kAscending}, {"descending", Order::kDescending}};
  const auto found = orders.find(order);
  if (found == orders.end()) throw py::value_error("order is random, ascending or descending, not " + order);
  set_schedule(found->second, seed);
}

std::string text_of(const LineStatistics& s) {
  const bool shared = s.space == Space::kShared;
  return s.file + ":" + std::to_string(s.line) + " " + (shared ? "shared " : "global ") +
         (s.access == Access::kRead ? "read of " : "write of ") + std::to_string(s.bytes) +
         " bytes: " + std::to_string(s.requests) + " requests, " + std::to_string(s.cost) +
         (shared ? " passes" : " sectors") + ", at best " + std::to_string(s.ideal);
}

void bind_statistics(py::module_& m) {
  py::class_<LineStatistics>(m, "LineStatistics", py::module_local(), "The accesses of one width from one line.")
      .def_readonly("file", &LineStatistics::file, "the path's last directories")
      .def_readonly("line", &LineStatistics::line)
      .def_property_readonly("space",
                             [](const LineStatistics& s) { return s.space == Space::kShared ? "shared" : "global"; })
      .def_property_readonly("access",
                             [](const LineStatistics& s) { return s.access == Access::kRead ? "read" : "write"; })
      .def_readonly("bytes", &LineStatistics::bytes, "of a thread's access")
      .def_readonly("accesses", &LineStatistics::accesses, "by threads")
      .def_readonly("requests", &LineStatistics::requests, "by warps")
      .def_readonly("cost", &LineStatistics::cost, "sectors of 32 bytes, or passes through the banks if shared")
      .def_readonly("ideal", &LineStatistics::ideal, "the least cost of accesses to as many bytes")
      .def("__repr__", &text_of);
  m.def("collect_statistics", &collect_statistics, py::arg("on"), "Starts or stops counting; the checked build only.");
  m.def("statistics", &statistics, "A LineStatistics for each line, access and width since clear_statistics().");
  m.def("clear_statistics", &clear_statistics);
}

}  // namespace

void bind_emulator(py::module_& m) {
  m.def("set_schedule", &set_schedule_by_name, py::arg("order") = "random", py::arg("seed") = 0,
        "Decides the order of threads in the launches to come: random, ascending or descending.");
  bind_statistics(m);
  m.def("register_buffer", &register_buffer, py::arg("address"), py::arg("bytes"), py::arg("writable"), py::arg("name"),
        "Global memory that launches may access; the checked build refuses any other.");
  m.def("clear_buffers", &clear_buffers, "Forgets all registered buffers.");
}
