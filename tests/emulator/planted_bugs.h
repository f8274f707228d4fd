// Small kernels, each with one bug that the emulator must find, and a twin without it. tests/test_emulator.py runs
// both.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cnnext::planted_bugs {

constexpr int kBlocks = 2, kThreads = 64, kCount = kBlocks * kThreads;

using Launcher = void (*)(bool planted, const float* x, float* y);  // x and y have kCount elements

struct Bug {
  std::string name;
  Launcher launch;
};

const std::vector<Bug>& bugs();

/// Those of planted_bugs_wgmma.cu, the last of `bugs`.
std::vector<Bug> wgmma_bugs();

/// y[i] = how many threads had run before thread i, summed over the two times that a barrier makes it run.
void thread_order(float* y);

/// Each lane of one warp reads `vector` floats (1, 2 or 4) from x, and from shared memory, `stride` vectors apart.
void strided_reads(int vector, int stride, const float* x, float* y);

/// __hfma of the bits of half, or of bfloat16.
uint16_t fma_bits(bool bfloat16, uint16_t a, uint16_t b, uint16_t c);

/// A launch that does nothing, with these dimensions.
void empty_launch(std::vector<unsigned> grid, std::vector<unsigned> block, size_t shared_bytes);

}  // namespace cnnext::planted_bugs
