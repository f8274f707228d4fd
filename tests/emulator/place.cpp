#include "place.h"

#include <cstring>

#include "source_lines.h"

namespace cnnext::emulator {

bool Place::operator==(const Place& other) const {
  const char *file = line.file_name(), *other_file = other.line.file_name();
  return line.line() == other.line.line() && line.column() == other.line.column() &&
         (file == other_file || std::strcmp(file, other_file) == 0);
}

std::string describe(const Place& place) {
  if (place.return_address != nullptr) return describe_address(place.return_address);
  return short_path(place.line.file_name()) + ":" + std::to_string(place.line.line());
}

std::string short_path(const std::string& path) {
  size_t start = path.size();
  for (int i = 0; i < 3 && start != std::string::npos && start != 0; ++i) start = path.rfind('/', start - 1);
  return start == std::string::npos ? path : path.substr(start + 1);
}

}  // namespace cnnext::emulator
