// The instructions of csrc/cuda/wgmma_instructions.h on the CPU.
#pragma once

#include "emulator.h"
#include "mbarrier.h"
#include "tensor_copy.h"
#include "warpgroup.h"

#undef __grid_constant__
#define __grid_constant__

namespace cnnext::cuda {

inline unsigned shared_address(const void* shared) { return emulator::shared_address(shared); }

// --- Barriers. ---

CNNEXT_EMULATOR_FUNCTION static void mbarrier_init(uint64_t* barrier, int arrivals,
                                                   const emulator::Line& line = emulator::Line::current()) {
  emulator::mbarrier_init(barrier, arrivals, CNNEXT_EMULATOR_PLACE(line));
}

inline void fence_async_proxy() { emulator::mbarrier_fence(); }

CNNEXT_EMULATOR_FUNCTION static void mbarrier_arrive(uint64_t* barrier,
                                                     const emulator::Line& line = emulator::Line::current()) {
  emulator::mbarrier_arrive(barrier, 0, CNNEXT_EMULATOR_PLACE(line));
}

CNNEXT_EMULATOR_FUNCTION static void mbarrier_arrive_expect(uint64_t* barrier, int bytes,
                                                            const emulator::Line& line = emulator::Line::current()) {
  emulator::mbarrier_arrive(barrier, bytes, CNNEXT_EMULATOR_PLACE(line));
}

CNNEXT_EMULATOR_FUNCTION static void mbarrier_wait(uint64_t* barrier, int parity,
                                                   const emulator::Line& line = emulator::Line::current()) {
  emulator::mbarrier_wait(barrier, parity, CNNEXT_EMULATOR_PLACE(line));
}

// --- Tensor copies. ---

inline void prefetch_tensor_map(const TensorMap&) {}

CNNEXT_EMULATOR_FUNCTION static void copy_tile(void* shared, const TensorMap& map, uint64_t* barrier, int i0, int i1,
                                               int i2, const emulator::Line& line = emulator::Line::current()) {
  emulator::copy_tile(shared, map, barrier, {i0, i1, i2}, CNNEXT_EMULATOR_PLACE(line));
}

CNNEXT_EMULATOR_FUNCTION static void copy_pixels(void* shared, const TensorMap& map, uint64_t* barrier, int channel,
                                                 int w, int h, int n, int offset_w, int offset_h,
                                                 const emulator::Line& line = emulator::Line::current()) {
  emulator::copy_pixels(shared, map, barrier, channel, w, h, n, offset_w, offset_h, CNNEXT_EMULATOR_PLACE(line));
}

// --- Products. ---

CNNEXT_EMULATOR_FUNCTION static void wgmma_fence(const emulator::Line& line = emulator::Line::current()) {
  emulator::wgmma_fence(CNNEXT_EMULATOR_PLACE(line));
}

CNNEXT_EMULATOR_FUNCTION static void wgmma_commit(const emulator::Line& line = emulator::Line::current()) {
  emulator::wgmma_commit(CNNEXT_EMULATOR_PLACE(line));
}

template <int kPending>
CNNEXT_EMULATOR_FUNCTION void wgmma_wait(const emulator::Line& line = emulator::Line::current()) {
  emulator::wgmma_wait(kPending, CNNEXT_EMULATOR_PLACE(line));
}

template <int kCount>
inline void keep_sums_behind_wait(float (&)[kCount]) {}

template <bool kColumnsAlongLine, int kCount, class T>
CNNEXT_EMULATOR_FUNCTION void wgmma_multiply(float (&d)[kCount], uint64_t a, uint64_t b, T,
                                             const emulator::Line& line = emulator::Line::current()) {
  static_assert(kCount == 64 || kCount == 128);
  constexpr bool kBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  emulator::wgmma_multiply({a, b, 2 * kCount, kColumnsAlongLine, kBFloat16}, d, CNNEXT_EMULATOR_PLACE(line));
}

}  // namespace cnnext::cuda
