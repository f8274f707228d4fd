#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <optional>
#include <stdexcept>
#include <vector>

#include "copy_async.h"
#include "fiber.h"
#include "mbarrier.h"
#include "memory.h"
#include "shared_memory.h"
#include "warp.h"
#include "warpgroup.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace cnnext::emulator {
namespace {

enum class State { kReady, kAtBarrier, kWaiting, kExited };

struct Thread {
  Fiber fiber;
  void* stack = nullptr;  // null before the first step and after the last
  State state;
  Place waits_at;
  const char* waits_where = "";
};

/// Of the thread that runs now.
struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
  int number;
};

struct Failure {
  Place place;
  std::string text;
};

Position position;
std::vector<Thread> threads;
std::vector<int> ready;  // in the fixed orders, the next one last
StackPool stacks;
Fiber scheduler;

bool kernel_runs = false;
void (*kernel)(const void*);
const void* kernel_arguments;
std::optional<Failure> failure;

int exited;            // threads of this block
int first_exited;      // one of them
int at_barrier;        // threads of this block
const Place* barrier;  // where those wait

Order order = Order::kRandom;
uint64_t seed = 0;
uint64_t random_state;

std::string format_arguments(const char* format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  std::string text(std::vsnprintf(nullptr, 0, format, again), '\0');
  va_end(again);
  std::vsnprintf(text.data(), text.size() + 1, format, arguments);
  return text;
}

std::string triple(uint3 v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

Thread& current() { return threads[position.number]; }

void make_ready(int number) {
  threads[number].state = State::kReady;
  ready.push_back(number);
}

/// Threads that become ready together, put in the order in which a fixed schedule takes them.
void make_all_ready(State from) {
  const int count = static_cast<int>(threads.size());
  for (int i = 0; i < count; ++i) {
    const int number = order == Order::kAscending ? count - 1 - i : i;
    if (threads[number].state == from) make_ready(number);
  }
}

int take_ready() {
  if (order == Order::kRandom) std::swap(ready[random_bits() % ready.size()], ready.back());
  const int number = ready.back();
  ready.pop_back();
  return number;
}

void exit_thread() {
  if (at_barrier > 0) {
    fail(*barrier, "%d threads wait at __syncthreads, and this one has ended without coming there", at_barrier);
  }
  check_no_meeting_expects(position.number);
  finish_copies();
  finish_products();
  if (exited + 1 == thread_count()) finish_mbarriers();
  current().state = State::kExited;
  if (exited++ == 0) first_exited = position.number;
}

[[gnu::no_sanitize("address")]] void run_thread() {
  kernel(kernel_arguments);
#ifdef __SANITIZE_ADDRESS__
  // The sums of products that were not waited for may lie where the next frames do.
  if (products_are_pending()) __asan_unpoison_memory_region(current().stack, StackPool::kBytes);
#endif
  exit_thread();
}

/// Where each fiber starts. It has no frame that the address sanitizer would guard, since it is never left.
[[gnu::no_sanitize("address", "undefined")]] void thread_entry() {
  Fiber::entered(scheduler);
  run_thread();
  current().fiber.switch_to(scheduler, /*done=*/true);
}

void step(int number) {
  Thread& thread = threads[number];
  const unsigned x = position.block_size.x, y = position.block_size.y, i = static_cast<unsigned>(number);
  position.number = number;
  position.thread = {i % x, i / x % y, i / x / y};
  if (thread.stack == nullptr) {
    thread.stack = stacks.take();
    thread.fiber.prepare(thread.stack, StackPool::kBytes, thread_entry);
  }
  current_stack = reinterpret_cast<uintptr_t>(thread.stack);
  scheduler.switch_to(thread.fiber);
  if (thread.state == State::kExited) stacks.give_back(thread.stack);
}

[[noreturn]] void throw_failure() {
  kernel_runs = false;
  stacks.reclaim();
  abandon_copies();
  abandon_products();
  const std::string text = describe(failure->place) + ": " + failure->text + " [block " + triple(position.block) +
                           " thread " + triple(position.thread) + ", " + schedule_name() + "]";
  throw std::runtime_error(text);
}

/// Nobody can go on: says how many wait where.
void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Thread& thread : threads) {
    if (thread.state == State::kAtBarrier) ++waiting["at __syncthreads, " + describe(thread.waits_at)];
    if (thread.state == State::kWaiting) {
      ++waiting[std::string(thread.waits_where) + ", " + describe(thread.waits_at)];
    }
  }
  std::string text = "deadlock";
  for (const auto& [where, count] : waiting) text += "; " + std::to_string(count) + " threads wait " + where;
  const auto first =
      std::find_if(threads.begin(), threads.end(), [](const Thread& t) { return t.state != State::kExited; });
  const unsigned x = position.block_size.x, y = position.block_size.y,
                 i = static_cast<unsigned>(first - threads.begin());
  position.thread = {i % x, i / x % y, i / x / y};
  failure = {first->waits_at, text};
}

void run_block(uint3 block, size_t shared_bytes) {
  position.block = block;
  exited = at_barrier = 0;
  begin_shared_memory(shared_bytes);
  begin_warps();
  begin_warpgroups();
  begin_mbarriers();
  memory_begins_block();
  ready.clear();
  for (Thread& thread : threads) thread.stack = nullptr, thread.state = State::kReady;
  make_all_ready(State::kReady);
  while (exited < thread_count()) {
    if (ready.empty()) report_deadlock();
    if (!failure) step(take_ready());
    if (failure) throw_failure();
  }
  memory_ends_block();
}

void check_limits(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto refuse = [&](const std::string& why) {
    const auto size = [](dim3 d) { return triple({d.x, d.y, d.z}); };
    throw std::runtime_error("launch refused: " + why + " [grid " + size(grid) + " block " + size(block) + " " +
                             std::to_string(shared_bytes) + " bytes of shared memory]");
  };
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  if (kernel_runs) refuse("another kernel runs");
  if (count == 0 || uint64_t{grid.x} * grid.y * grid.z == 0) refuse("a dimension is 0");
  if (count > kMaxThreads) refuse("more than 1024 threads a block");
  if (block.z > 64) refuse("more than 64 threads in z");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) refuse("more than (2^31 - 1, 65535, 65535) blocks");
  if (shared_bytes > kMaxSharedBytes) refuse("more than 227 KiB of shared memory");
}

}  // namespace

uintptr_t current_stack;

uint3 thread_index() { return position.thread; }
uint3 block_index() { return position.block; }
dim3 block_size() { return position.block_size; }
dim3 grid_size() { return position.grid_size; }
int thread_number() { return position.number; }
int thread_count() { return static_cast<int>(threads.size()); }
bool running() { return kernel_runs; }
bool has_exited(int thread) { return threads[thread].state == State::kExited; }

void run(dim3 grid, dim3 block, size_t shared_bytes, void (*function)(const void*), const void* arguments) {
  check_limits(grid, block, shared_bytes);
  kernel = function;
  kernel_arguments = arguments;
  failure.reset();
  random_state = (seed + 1) * 0x9e3779b97f4a7c15u;
  position.block_size = block;
  position.grid_size = grid;
  threads.resize(block.x * block.y * block.z);
  memory_begins_launch();
  kernel_runs = true;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) run_block({x, y, z}, shared_bytes);
    }
  }
  kernel_runs = false;
}

void set_schedule(Order new_order, uint64_t new_seed) {
  order = new_order;
  seed = new_seed;
}

std::string schedule_name() {
  if (order == Order::kAscending) return "ascending order, seed " + std::to_string(seed);
  if (order == Order::kDescending) return "descending order, seed " + std::to_string(seed);
  return "random order, seed " + std::to_string(seed);
}

uint64_t random_bits() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 0x2545f4914f6cdd1du >> 16;
}

void yield() { current().fiber.switch_to(scheduler); }

void wait(const Place& place, const char* where) {
  current().state = State::kWaiting;
  current().waits_at = place;
  current().waits_where = where;
  yield();
}

void wake(int thread) { make_ready(thread); }

// Stricter than a GPU from Volta on, where threads that have ended no longer count: who relies on that depends on which
// threads have ended by then.
void synchronize_block(const Place& place) {
  if (exited > 0) fail(place, "thread number %d has ended without coming to this __syncthreads", first_exited);
  if (at_barrier > 0 && !(*barrier == place)) {
    fail(place, "__syncthreads, while %d threads wait at another, %s", at_barrier, describe(*barrier).c_str());
  }
  Thread& self = current();
  self.state = State::kAtBarrier;
  self.waits_at = place;
  barrier = &self.waits_at;
  if (++at_barrier == thread_count()) {
    at_barrier = 0;
    memory_passes_barrier();
    make_all_ready(State::kAtBarrier);  // with all others: who comes last gets no head start
  }
  yield();
}

void fail(const Place& place, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  Failure failed{place, format_arguments(format, arguments)};
  va_end(arguments);
  if (!kernel_runs) throw std::runtime_error(describe(place) + ": " + failed.text);
  failure = std::move(failed);
  current().fiber.switch_to(scheduler, /*done=*/true);
  __builtin_unreachable();
}

}  // namespace cnnext::emulator
