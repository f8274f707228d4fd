// What a compiler calls at every plain access of code compiled with -fsanitize=thread. The checked build does not link
// the thread sanitizer, but this.
#include "memory.h"

using namespace cnnext::emulator;

namespace {

Place called_from(const void* return_address) { return {{}, return_address}; }

}  // namespace

#define HOOK(bytes)                                                                   \
  void __tsan_read##bytes(void* p) {                                                  \
    check_access(p, bytes, Access::kRead, called_from(__builtin_return_address(0)));  \
  }                                                                                   \
  void __tsan_write##bytes(void* p) {                                                 \
    check_access(p, bytes, Access::kWrite, called_from(__builtin_return_address(0))); \
  }                                                                                   \
  /* An access that the compiler does not know to be aligned; on a GPU it must be. */ \
  void __tsan_unaligned_read##bytes(void* p) {                                        \
    check_access(p, bytes, Access::kRead, called_from(__builtin_return_address(0)));  \
  }                                                                                   \
  void __tsan_unaligned_write##bytes(void* p) {                                       \
    check_access(p, bytes, Access::kWrite, called_from(__builtin_return_address(0))); \
  }

extern "C" {

HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)

// Structures, which a GPU copies in parts.
void __tsan_read_range(void* p, size_t bytes) {
  check_range(p, bytes, Access::kRead, called_from(__builtin_return_address(0)));
}
void __tsan_write_range(void* p, size_t bytes) {
  check_range(p, bytes, Access::kWrite, called_from(__builtin_return_address(0)));
}

/// Of the flag that guards a static variable of a host function.
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int order) { return __atomic_load_n(p, order); }

void __tsan_init() {}
}
