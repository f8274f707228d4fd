// From an address of code to the source lines it was compiled from, by binutils' addr2line.
#pragma once

#include <string>
#include <vector>

namespace cnnext::emulator {

struct SourceLine {
  std::string file;
  int line = 0;
};

/// For each address of an instruction after a call: the line of the call, and those that it was inlined into, innermost
/// first. Empty where nothing is known.
std::vector<std::vector<SourceLine>> source_lines(const std::vector<const void*>& return_addresses);

/// "kernel.cu:12, inlined at kernel.cu:40".
std::string describe_address(const void* return_address);

}  // namespace cnnext::emulator
