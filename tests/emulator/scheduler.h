// Runs the threads of a grid as fibers, block after block, in an order that a seed decides.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "place.h"

namespace cnnext::emulator {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

// --- What a kernel finds out about itself. `const`, so the compiler keeps what it was told once: seen from a thread
// none of it ever changes. ---

[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] dim3 block_size();
[[gnu::const]] dim3 grid_size();

/// Number of the thread in its block, x fastest.
[[gnu::const]] int thread_number();

// --- Launching. ---

/// Calls kernel(arguments) once for each thread of the grid. Throws std::runtime_error if the launch exceeds the limits
/// of a GPU, or if a thread fails; the other threads are then abandoned where they are.
void run(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(const void*), const void* arguments);

/// Whether a kernel runs.
bool running();

/// Which of the threads that could go on does.
enum class Order {
  kRandom,
  kAscending,   // of those that became ready together, the lowest number first; each runs until it waits
  kDescending,  // the highest number first
};

/// For the launches to come. The same order and seed run a launch the same way every time.
void set_schedule(Order order, uint64_t seed);

/// "random order, seed 3".
std::string schedule_name();

/// Decided by the seed.
uint64_t random_bits();

/// Start of the stack of the thread that runs now.
extern uintptr_t current_stack;

// --- Waiting. ---

/// __syncthreads.
void synchronize_block(const Place& place);

/// Suspends the thread that runs now until another calls `wake` with its number. `place` and `where` ("for their warp")
/// are for the report should that never happen.
void wait(const Place& place, const char* where);
void wake(int thread);

/// Lets others run.
void yield();

/// How many threads the block has, and whether one of them has ended.
int thread_count();
bool has_exited(int thread);

}  // namespace cnnext::emulator
