// The checked build: every access of a kernel comes here, from the functions of portability.h and, for plain accesses,
// from tsan_hooks.cpp. An access must be aligned, lie within one registered buffer or array of shared memory, and be
// ordered with the accesses of other threads; what is read from shared memory must have been written.
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fiber.h"
#include "happens_before.h"
#include "memory.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "statistics.h"
#include "warpgroup.h"

namespace cnnext::emulator {
namespace {

/// Memory that kernels may access.
struct Region {
  uintptr_t begin, end;
  bool writable;
  Space space;
  std::string name;
  std::vector<Cell> cells;  // none if nobody may write

  bool contains(uintptr_t address) const { return address - begin < end - begin; }
  Cell& cell(uintptr_t address) { return cells[(address - begin) / kCellBytes]; }
};

std::vector<Region> buffers;
std::vector<Region> shared_arrays;  // the first shared_count; the others keep their cells for later blocks
size_t shared_count = 0;
HappensBefore order;
bool inside = false;  // of this file: an instrumented copy of some function of the standard library may be called here

/// Code addresses are kept as 32-bit distances from this function.
int32_t to_code(const void* return_address) {
  return static_cast<int32_t>(static_cast<const char*>(return_address) - reinterpret_cast<const char*>(&to_code));
}
std::string describe_code(int32_t code) { return describe({{}, reinterpret_cast<const char*>(&to_code) + code}); }

std::string thread_name(int number) {
  if (number >= kMaxThreads) return "a tensor copy";
  const unsigned x = block_size().x, y = block_size().y, i = static_cast<unsigned>(number);
  return "thread (" + std::to_string(i % x) + "," + std::to_string(i / x % y) + "," + std::to_string(i / x / y) + ")";
}

const char* verb(Access access) { return access == Access::kRead ? "read" : "write"; }

/// One access under examination.
struct Request {
  uintptr_t address;
  size_t bytes;
  Access access;
  const Place& place;

  /// "read of 4 bytes at x + 12".
  std::string text(const Region& region) const {
    return std::string(verb(access)) + " of " + std::to_string(bytes) + " bytes at " + region.name + " + " +
           std::to_string(address - region.begin);
  }

  [[noreturn]] void fail_race(const Region& region, const char* other, int thread, int32_t code) const {
    const std::string who = thread < 0 ? "a thread of another block" : thread_name(thread);
    fail(place, "race: %s, and a %s by %s at %s, with nothing that orders the two", text(region).c_str(), other,
         who.c_str(), describe_code(code).c_str());
  }
};

/// Constants that the compiler placed in the module.
bool is_constant(uintptr_t address) {
  const auto visit = [](dl_phdr_info* module, size_t, void* data) {
    const uintptr_t a = *static_cast<uintptr_t*>(data);
    for (const ElfW(Phdr)* p = module->dlpi_phdr; p != module->dlpi_phdr + module->dlpi_phnum; ++p) {
      const bool read_only = (p->p_type == PT_LOAD && !(p->p_flags & PF_W)) || p->p_type == PT_GNU_RELRO;
      if (read_only && a - (module->dlpi_addr + p->p_vaddr) < p->p_memsz) return 1;
    }
    return 0;
  };
  return dl_iterate_phdr(visit, &address) != 0;
}

Region* find(std::vector<Region>& regions, size_t count, uintptr_t address) {
  static size_t last = 0;  // most accesses hit the region of the one before
  if (last < count && regions[last].contains(address)) return &regions[last];
  for (size_t i = 0; i < count; ++i) {
    if (regions[i].contains(address)) return last = i, &regions[i];
  }
  return nullptr;
}

/// The region closest below or above, for a message.
std::string nearest(const std::vector<Region>& regions, size_t count, uintptr_t address) {
  std::string text = "no registered buffer";
  uintptr_t best = 1 << 16;
  for (size_t i = 0; i < count; ++i) {
    const Region& r = regions[i];
    const uintptr_t distance = address >= r.end ? address - r.end : r.begin - address;
    if (distance >= best) continue;
    best = distance;
    text = address >= r.end ? std::to_string(distance) + " bytes behind the end of " + r.name
                            : std::to_string(distance) + " bytes before " + r.name;
  }
  return text;
}

void check_cells(const Request& request, Region& region, bool starts_copy) {
  const int thread = thread_number();
  const int32_t code = to_code(request.place.return_address);
  const bool shared = region.space == Space::kShared;
  for (uintptr_t a = request.address & ~uintptr_t{kCellBytes - 1}; a < request.address + request.bytes;
       a += kCellBytes) {
    Cell& cell = region.cell(a);
    const bool stale = shared && !order.written_in_block(cell);  // of an earlier block, in memory that is reused
    if (stale && cell.write_epoch != 0) cell.write_epoch = 0, cell.in_flight = false;
    if (shared && cell.read_epoch < order.block_epoch()) cell.read_epoch = 0;
    if (cell.in_flight) {
      fail(request.place, "%s, which a copy of %s at %s has not been waited for to fill", request.text(region).c_str(),
           thread_name(cell.writer).c_str(), describe_code(cell.write_code).c_str());
    }
    if (!order.write_is_ordered(cell, thread)) {
      const int writer = shared || order.written_in_block(cell) ? cell.writer : -1;
      request.fail_race(region, "write", writer, cell.write_code);
    }
    if (request.access == Access::kRead) {
      if (stale)
        fail(request.place, "uninitialised: %s, which no thread of the block has written yet",
             request.text(region).c_str());
      order.record_read(cell, thread, code);
      continue;
    }
    int reader;
    if (!order.reads_are_ordered(cell, thread, reader)) request.fail_race(region, "read", reader, cell.read_code);
    if (!shared && cell.write_epoch != 0 && cell.writer != thread) {
      fail(request.place, "second write: %s, which %s has written before, at %s", request.text(region).c_str(),
           thread_name(cell.writer).c_str(), describe_code(cell.write_code).c_str());
    }
    order.record_write(cell, thread, code);
    cell.in_flight = starts_copy;
  }
}

/// How an access is made.
struct Manner {
  bool may_be_misaligned = false;
  bool starts_copy = false;
  bool counts = true;  // in the statistics
};

void check(const Request& request, const Manner& manner) {
  const uintptr_t a = request.address;
  if (a - current_stack < StackPool::kBytes) {
    if (const Place* product = product_with_sums(a, request.bytes)) {
      fail(request.place, "%s of a sum that the product started at %s has not been waited for to give",
           verb(request.access), describe(*product).c_str());
    }
    return;
  }
  const bool shared = in_shared_memory(reinterpret_cast<const void*>(a));
  auto& regions = shared ? shared_arrays : buffers;
  const size_t count = shared ? shared_count : buffers.size();
  Region* const region = find(regions, count, a);
  if (region == nullptr) {
    if (!shared && request.access == Access::kRead && is_constant(a)) return;
    fail(request.place, "out of bounds: %s of %zu bytes at %p, %s", verb(request.access), request.bytes,
         reinterpret_cast<void*>(a), nearest(regions, count, a).c_str());
  }
  if (a + request.bytes > region->end) {
    fail(request.place, "out of bounds: %s, of which %zu lie behind its end", request.text(*region).c_str(),
         a + request.bytes - region->end);
  }
  if (!manner.may_be_misaligned && a % request.bytes != 0) {
    fail(request.place, "misaligned: %s (address %p)", request.text(*region).c_str(), reinterpret_cast<void*>(a));
  }
  if (request.access == Access::kWrite && !region->writable) {
    fail(request.place, "write to an input: %s", request.text(*region).c_str());
  }
  if (!region->cells.empty()) check_cells(request, *region, manner.starts_copy);
  if (manner.counts) count_access(region->space, request.access, a, request.bytes, request.place.return_address);
}

void enter(const Request& request, const Manner& manner = {}) {
  if (!running() || inside) return;
  inside = true;
  check(request, manner);
  inside = false;
}

size_t cells_of(size_t bytes) { return (bytes + kCellBytes) / kCellBytes; }

}  // namespace

void check_access(const void* address, size_t bytes, Access access, const Place& place) {
  enter({reinterpret_cast<uintptr_t>(address), bytes, access, place});
}

void check_range(const void* address, size_t bytes, Access access, const Place& place) {
  enter({reinterpret_cast<uintptr_t>(address), bytes, access, place}, {.may_be_misaligned = true});
}

void check_uncounted(const void* address, size_t bytes, Access access, const Place& place) {
  enter({reinterpret_cast<uintptr_t>(address), bytes, access, place}, {.counts = false});
}

void fail_misaligned(const void* address, size_t bytes, const Place& place) {
  fail(place, "misaligned: access of %zu bytes at %p", bytes, address);
}

void copy_starts(const void* shared, size_t bytes, const Place& place) {
  if (!in_shared_memory(shared)) fail(place, "cp.async to %p, which is not shared memory", shared);
  enter({reinterpret_cast<uintptr_t>(shared), bytes, Access::kWrite, place}, {.starts_copy = true});
}

void copy_lands(const void* shared, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(shared);
  Region& region = *find(shared_arrays, shared_count, begin);
  for (uintptr_t a = begin; a < begin + bytes; a += kCellBytes) {
    // As if the thread wrote only now: others see it after the next barrier.
    Cell& cell = region.cell(a);
    cell.in_flight = false;
    order.record_write(cell, thread_number(), cell.write_code);
  }
}

void tensor_copy_starts(const void* shared, const Place& place) {
  enter({reinterpret_cast<uintptr_t>(shared), kTensorPieceBytes, Access::kWrite, place},
        {.starts_copy = true, .counts = false});
}

void tensor_copy_lands(const void* shared, int barrier, const Place& place) {
  const auto begin = reinterpret_cast<uintptr_t>(shared);
  Region& region = *find(shared_arrays, shared_count, begin);
  for (uintptr_t a = begin; a < begin + kTensorPieceBytes; a += kCellBytes) {
    Cell& cell = region.cell(a);
    cell.in_flight = false;
    order.record_write(cell, kMaxThreads + barrier, to_code(place.return_address));
  }
}

void register_buffer(uintptr_t address, size_t bytes, bool writable, const char* name) {
  std::vector<Cell> cells(writable ? cells_of(bytes) : 0);
  buffers.push_back({address, address + bytes, writable, Space::kGlobal, name, std::move(cells)});
}

void clear_buffers() { buffers.clear(); }

void memory_gets_shared_array(const void* address, size_t bytes, const char* name) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (shared_count == shared_arrays.size()) shared_arrays.emplace_back();
  Region& region = shared_arrays[shared_count++];
  region.begin = begin;
  region.end = begin + bytes;
  region.writable = true;
  region.space = Space::kShared;
  region.name = name;
  if (region.cells.size() < cells_of(bytes)) region.cells.resize(cells_of(bytes));
}

void memory_drops_shared_arrays() { shared_count = 0; }

void memory_begins_launch() {
  inside = false;
  for (Region& buffer : buffers) std::fill(buffer.cells.begin(), buffer.cells.end(), Cell{});
}

void memory_begins_block() {
  order.begin_block();
  begin_block_statistics();
}

void memory_ends_block() { end_block_statistics(); }
void memory_passes_barrier() { order.pass_barrier(); }
void memory_joins_lanes(int warp, unsigned mask) { order.join_lanes(warp, mask); }
void memory_gets_barrier() { order.add_barrier(); }
void memory_releases(int barrier) { order.release(barrier, thread_number()); }
void memory_releases_copies(int barrier) { order.release_copies(barrier); }
void memory_ends_phase(int barrier) { order.end_phase(barrier); }
void memory_acquires(int barrier) { order.acquire(barrier, thread_number()); }

}  // namespace cnnext::emulator
