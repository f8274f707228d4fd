// Where in the source something happens, and how a failure there is reported.
#pragma once

#include <source_location>
#include <string>

namespace cnnext::emulator {

/// A place in a kernel: the line that called a function of portability.h or a CUDA built-in, or, for a plain access
/// that only the checked build sees, the address of the instruction after it.
struct Place {
  std::source_location line;
  const void* return_address = nullptr;

  /// By line and column: the compiler may have made several copies of the instructions.
  bool operator==(const Place& other) const;
};

/// "file.cu:12", followed by the lines that it was inlined into, innermost first.
std::string describe(const Place& place);

/// Ends the launch: the thread that runs now, and with it all others, is abandoned, and `run` throws a
/// std::runtime_error that says block, thread, place, and this text (as of printf).
[[noreturn, gnu::format(printf, 2, 3)]] void fail(const Place& place, const char* format, ...);

/// The path from its last three directories on, which is enough to find the file.
std::string short_path(const std::string& path);

}  // namespace cnnext::emulator
