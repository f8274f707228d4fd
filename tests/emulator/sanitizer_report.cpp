// The sanitized build: when a sanitizer ends the process, its report also says which block and thread ran.
#ifdef __SANITIZE_ADDRESS__

#include <dlfcn.h>
#include <sanitizer/common_interface_defs.h>

#include <cstdio>

#include "scheduler.h"

namespace cnnext::emulator {
namespace {

void report_thread() {
  if (!running()) return;
  const uint3 b = block_index(), t = thread_index();
  std::fprintf(stderr, "[block (%u,%u,%u) thread (%u,%u,%u), %s]\n", b.x, b.y, b.z, t.x, t.y, t.z,
               schedule_name().c_str());
}

/// GCC's two sanitizers are libraries of their own, each with a callback of the same name.
[[gnu::constructor]] void install() {
  __sanitizer_set_death_callback(report_thread);
  void* const undefined = dlopen("libubsan.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (undefined == nullptr) return;
  const auto set_callback = reinterpret_cast<void (*)(void (*)())>(dlsym(undefined, "__sanitizer_set_death_callback"));
  if (set_callback != nullptr) set_callback(report_thread);
}

}  // namespace
}  // namespace cnnext::emulator

#endif
