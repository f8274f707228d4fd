#include "source_lines.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "place.h"

namespace cnnext::emulator {
namespace {

/// "/path/file.cu:12 (discriminator 3)" as a line.
SourceLine parse_line(const std::string& text) {
  const size_t colon = text.rfind(':', text.find(" ("));
  if (colon == std::string::npos || text[0] == '?') return {};
  return {short_path(text.substr(0, colon)), std::atoi(text.c_str() + colon + 1)};
}

/// Where this module is loaded, and its file, held open from then on: a later build puts another file in its place.
struct Module {
  const char* base;
  int file;
};
Module module;

[[gnu::constructor]] void open_module() {
  Dl_info info{};
  dladdr(reinterpret_cast<void*>(&open_module), &info);
  module = {static_cast<const char*>(info.dli_fbase), open(info.dli_fname, O_RDONLY | O_CLOEXEC)};
}

}  // namespace

std::vector<std::vector<SourceLine>> source_lines(const std::vector<const void*>& return_addresses) {
  std::vector<std::vector<SourceLine>> result(return_addresses.size());
  if (return_addresses.empty()) return result;
  // -a prints each address before its lines.
  const std::string file = "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(module.file);
  std::string command = "addr2line -a -i -e " + file;
  for (const void* address : return_addresses) {
    char text[24];
    // One less: the call itself, not what follows it.
    const auto offset = static_cast<const char*>(address) - module.base - 1;
    std::snprintf(text, sizeof(text), " 0x%llx", static_cast<unsigned long long>(offset));
    command += text;
  }
  const std::unique_ptr<FILE, int (*)(FILE*)> output(popen((command + " 2>/dev/null").c_str(), "r"), pclose);
  char buffer[4096];
  size_t index = 0;  // of the address that the lines belong to, counted from 1
  while (output && std::fgets(buffer, sizeof(buffer), output.get())) {
    const std::string text(buffer, buffer + std::char_traits<char>::length(buffer) - 1);
    if (text.starts_with("0x")) {
      ++index;
    } else if (const SourceLine line = parse_line(text); index > 0 && line.line > 0) {
      result[index - 1].push_back(line);
    }
  }
  return result;
}

std::string describe_address(const void* return_address) {
  const auto lines = source_lines({return_address});
  std::string text;
  for (const SourceLine& line : lines[0]) {
    text += (text.empty() ? "" : ", inlined at ") + line.file + ":" + std::to_string(line.line);
  }
  return text.empty() ? "unknown line" : text;
}

}  // namespace cnnext::emulator
