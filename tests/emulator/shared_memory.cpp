#include "shared_memory.h"

#include <cstring>
#include <memory>
#include <vector>

#include "memory.h"
#include "place.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cnnext::emulator {
namespace {

constexpr size_t kGap = 1024;
constexpr size_t kArenaBytes = 512 * 1024;
constexpr size_t kAlignment = 128;

struct StaticArray {
  const void* tag;
  void* memory;
};

/// Aligned to its page, so that the offset of an array decides its banks.
alignas(4096) unsigned char arena[kArenaBytes];
size_t used = 0;       // of the arena, the last gap included
size_t allocated = 0;  // bytes of the arrays
size_t dynamic_bytes = 0;
void* dynamic_array;
std::vector<StaticArray> static_arrays;

void* allocate(size_t bytes, const char* name) {
  unsigned char* memory = arena + used;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(memory, bytes);
#endif
  std::memset(memory, 0xff, bytes);
  memory_gets_shared_array(memory, bytes, name);
  used += (bytes + kAlignment - 1) / kAlignment * kAlignment + kGap;
  allocated += bytes;
  return memory;
}

}  // namespace

bool in_shared_memory(const void* address) { return address >= arena && address < arena + kArenaBytes; }

unsigned shared_address(const void* address) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(address) - arena);
}

unsigned char* shared_pointer(unsigned address, size_t bytes, const Place& place) {
  if (address + bytes > kArenaBytes) fail(place, "shared memory + %u does not exist", address);
  return arena + address;
}

void begin_shared_memory(size_t bytes) {
  static_arrays.clear();
  memory_drops_shared_arrays();
#ifdef __SANITIZE_ADDRESS__
  __asan_poison_memory_region(arena, used == 0 ? kArenaBytes : used);
#endif
  // No better aligned than portability.h says.
  used = kGap + kAlignment;
  allocated = 0;
  dynamic_bytes = bytes;
  dynamic_array = allocate(bytes, "dynamic shared memory");
}

void* dynamic_shared() { return dynamic_array; }

void* static_shared(const void* tag, size_t bytes, const char* name) {
  for (const StaticArray& array : static_arrays) {
    if (array.tag == tag) return array.memory;
  }
  if (allocated - dynamic_bytes + bytes > kMaxStaticBytes || allocated + bytes > kMaxSharedBytes) {
    fail({}, "%s: more than 48 KiB of static shared memory, or than 227 KiB in all", name);
  }
  static_arrays.push_back({tag, allocate(bytes, name)});
  return static_arrays.back().memory;
}

}  // namespace cnnext::emulator
