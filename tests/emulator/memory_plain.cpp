// The plain and the sanitized build: alignment. Bounds are the sanitizer's business, which sees plain accesses itself;
// those of cp.async happen later, in the emulator, so they are looked at here.
#include "memory.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cnnext::emulator {

void fail_misaligned(const void* address, size_t bytes, const Place& place) {
  fail(place, "access of %zu bytes at %p, which is not aligned to them", bytes, address);
}

void check_access(const void* address, size_t bytes, Access, const Place& place) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) fail_misaligned(address, bytes, place);
#ifdef __SANITIZE_ADDRESS__
  if (__asan_region_is_poisoned(const_cast<void*>(address), bytes) != nullptr) {
    fail(place, "access of %zu bytes at %p, which is out of bounds", bytes, address);
  }
#endif
}

void check_uncounted(const void* address, size_t bytes, Access access, const Place& place) {
  check_access(address, bytes, access, place);
}

void copy_starts(const void* shared, size_t bytes, const Place& place) {
  check_access(shared, bytes, Access::kWrite, place);
}

void tensor_copy_starts(const void* shared, const Place& place) {
  check_access(shared, kTensorPieceBytes, Access::kWrite, place);
}

void register_buffer(uintptr_t, size_t, bool, const char*) {}
void clear_buffers() {}
void memory_gets_shared_array(const void*, size_t, const char*) {}
void memory_drops_shared_arrays() {}
void copy_lands(const void*, size_t) {}
void memory_begins_launch() {}
void memory_begins_block() {}
void memory_ends_block() {}
void memory_passes_barrier() {}
void memory_joins_lanes(int, unsigned) {}
void tensor_copy_lands(const void*, int, const Place&) {}
void memory_gets_barrier() {}
void memory_releases(int) {}
void memory_releases_copies(int) {}
void memory_ends_phase(int) {}
void memory_acquires(int) {}

}  // namespace cnnext::emulator
