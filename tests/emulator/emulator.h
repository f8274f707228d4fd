// CUDA on the CPU: what csrc/cuda/portability.h includes when the compiler is not nvcc. See docs/emulator.md.
//
// A kernel is an ordinary function here. The types and conversions of half and bfloat16 come from CUDA's own headers,
// which compile as plain C++; this file and device_math.h add what those headers only have for a GPU. Tensor-core
// instructions have a file of their own, emulator_matrix.h, included by csrc/cuda/matrix_instructions.h.
//
// Every function that a kernel calls and that may fail takes the line of the call as its last argument, by default.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstdint>
#include <cstring>
#include <source_location>

#include "copy_async.h"
#include "memory.h"
#include "scheduler.h"
#include "shared_memory.h"
#include "warp.h"

// A kernel's qualifiers mean nothing here.
#undef __global__
#define __global__
#undef __launch_bounds__
#define __launch_bounds__(...)

// In the checked build kernels are compiled with -fsanitize=thread, which calls the emulator at every access. Functions
// of the emulator that lie in headers are left out of that; they then cannot be inlined, and so know their caller.
#ifdef __SANITIZE_THREAD__
#define CNNEXT_EMULATOR_FUNCTION __attribute__((noinline, no_sanitize("thread")))
#define CNNEXT_EMULATOR_PLACE(line) \
  ::cnnext::emulator::Place { line, __builtin_return_address(0) }
#else
#define CNNEXT_EMULATOR_FUNCTION inline
#define CNNEXT_EMULATOR_PLACE(line) \
  ::cnnext::emulator::Place { line }
#endif

#define threadIdx ::cnnext::emulator::thread_index()
#define blockIdx ::cnnext::emulator::block_index()
#define blockDim ::cnnext::emulator::block_size()
#define gridDim ::cnnext::emulator::grid_size()
#define warpSize 32

struct CUstream_st;
using cudaStream_t = CUstream_st*;

#include "device_math.h"

namespace cnnext::emulator {

using Line = std::source_location;

/// What a lane gets in a shuffle from lane `source` of the warp.
template <class T>
CNNEXT_EMULATOR_FUNCTION T shuffle(unsigned mask, T value, int source, const Line& line) {
  const Place place{line};
  return exchange(mask, value, place, [&](const Meeting& meeting) __attribute__((no_sanitize("thread"))) {
    if (!(mask >> source & 1)) fail(place, "shuffle from lane %d, which is not in mask %08x", source, mask);
    return meeting.read<T>(source);
  });
}

/// The lanes of `mask` for which `predicate` holds.
CNNEXT_EMULATOR_FUNCTION static unsigned ballot(unsigned mask, bool predicate, const Line& line) {
  return exchange(mask, predicate, Place{line}, [&](const Meeting& meeting) __attribute__((no_sanitize("thread"))) {
    unsigned lanes = 0;
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) && meeting.read<bool>(i)) lanes |= 1u << i;
    }
    return lanes;
  });
}

template <class T, size_t kCount>
CNNEXT_EMULATOR_FUNCTION T (&static_shared_array(const void* tag, const char* name))
    [kCount] { return *static_cast<T(*)[kCount]>(static_shared(tag, sizeof(T) * kCount, name)); }

}  // namespace cnnext::emulator

// --- Shared memory. ---

#define CNNEXT_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::cnnext::emulator::dynamic_shared())

// The tag's address names the array, in each instance of a template anew.
#define CNNEXT_STATIC_SHARED(T, name, count) \
  static const char name##_tag = 0;          \
  T(&name)[(count)] = ::cnnext::emulator::static_shared_array<T, (count)>(&name##_tag, #name)

// --- Built-ins, in the global namespace as CUDA's. ---

inline void __syncthreads(const std::source_location& line = std::source_location::current()) {
  cnnext::emulator::synchronize_block({line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       const std::source_location& line = std::source_location::current()) {
  cnnext::emulator::leave(cnnext::emulator::meet(mask, "", 1, {line}));
}

// The lanes of a shuffle of `width` are those of the warp that share lane / width. A lane whose source lies outside
// gets its own value.

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const std::source_location& line = std::source_location::current()) {
  const int lane = cnnext::emulator::lane();
  return cnnext::emulator::shuffle(mask, value, lane / width * width + source % width, line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const std::source_location& line = std::source_location::current()) {
  const int lane = cnnext::emulator::lane(), source = lane - static_cast<int>(delta);
  return cnnext::emulator::shuffle(mask, value, source < lane / width * width ? lane : source, line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const std::source_location& line = std::source_location::current()) {
  const int lane = cnnext::emulator::lane(), source = lane + static_cast<int>(delta);
  return cnnext::emulator::shuffle(mask, value, source >= (lane / width + 1) * width ? lane : source, line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  const std::source_location& line = std::source_location::current()) {
  const int lane = cnnext::emulator::lane(), source = lane ^ lane_mask;
  return cnnext::emulator::shuffle(mask, value, source >= (lane / width + 1) * width ? lane : source, line);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              const std::source_location& line = std::source_location::current()) {
  return cnnext::emulator::ballot(mask, predicate, line);
}

inline bool __any_sync(unsigned mask, bool predicate,
                       const std::source_location& line = std::source_location::current()) {
  return cnnext::emulator::ballot(mask, predicate, line) != 0;
}

inline bool __all_sync(unsigned mask, bool predicate,
                       const std::source_location& line = std::source_location::current()) {
  return cnnext::emulator::ballot(mask, predicate, line) == mask;
}

// --- The functions of portability.h. ---

namespace cnnext::cuda {

template <class... Params, class... Args>
CNNEXT_EMULATOR_FUNCTION void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t, const Args&... args) {
  const auto call = [&]() __attribute__((no_sanitize("thread"))) { kernel(static_cast<Params>(args)...); };
  emulator::run(
      grid, block, shared_bytes,
      [](const void* f) __attribute__((no_sanitize("thread"))) { (*static_cast<decltype(&call)>(f))(); }, &call);
}

template <class V>
CNNEXT_EMULATOR_FUNCTION V load(const void* p, const emulator::Line& line = emulator::Line::current()) {
#ifdef __SANITIZE_THREAD__
  emulator::check_access(p, sizeof(V), emulator::Access::kRead, CNNEXT_EMULATOR_PLACE(line));
#else
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) emulator::fail_misaligned(p, sizeof(V), {line});
#endif
  return *static_cast<const V*>(p);
}

template <class V>
CNNEXT_EMULATOR_FUNCTION V load_global(const void* p, const emulator::Line& line = emulator::Line::current()) {
#ifdef __SANITIZE_THREAD__
  emulator::check_access(p, sizeof(V), emulator::Access::kRead, CNNEXT_EMULATOR_PLACE(line));
#else
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) emulator::fail_misaligned(p, sizeof(V), {line});
#endif
  return *static_cast<const V*>(p);
}

template <class V>
CNNEXT_EMULATOR_FUNCTION void store(void* p, const V& value, const emulator::Line& line = emulator::Line::current()) {
#ifdef __SANITIZE_THREAD__
  emulator::check_access(p, sizeof(V), emulator::Access::kWrite, CNNEXT_EMULATOR_PLACE(line));
#else
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) emulator::fail_misaligned(p, sizeof(V), {line});
#endif
  *static_cast<V*>(p) = value;
}

template <class V>
CNNEXT_EMULATOR_FUNCTION void store_global(void* p, const V& value,
                                           const emulator::Line& line = emulator::Line::current()) {
#ifdef __SANITIZE_THREAD__
  emulator::check_access(p, sizeof(V), emulator::Access::kWrite, CNNEXT_EMULATOR_PLACE(line));
#else
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) emulator::fail_misaligned(p, sizeof(V), {line});
#endif
  *static_cast<V*>(p) = value;
}

template <int kBytes>
CNNEXT_EMULATOR_FUNCTION void copy_async(void* shared, const void* global, bool valid = true,
                                         const emulator::Line& line = emulator::Line::current()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  emulator::start_copy(shared, global, kBytes, valid, CNNEXT_EMULATOR_PLACE(line));
}

inline void copy_async_commit() { emulator::commit_copies(); }

template <int kPending>
void copy_async_wait() {
  emulator::wait_copies(kPending);
}

}  // namespace cnnext::cuda

/// A read through the read-only cache.
template <class T>
CNNEXT_EMULATOR_FUNCTION T __ldg(const T* p, const std::source_location& line = std::source_location::current()) {
#ifdef __SANITIZE_THREAD__
  cnnext::emulator::check_access(p, sizeof(T), cnnext::emulator::Access::kRead, CNNEXT_EMULATOR_PLACE(line));
#endif
  return *p;
}
