// Configurations of a depthwise-separable block: the fused kernel in several tiles, and its halves as two kernels, by a
// cost model.
//
// Fusing saves the write and the read of the tensor between the halves, and a launch. It costs: each tile of output
// channels makes that tensor again, and each tile of pixels reads the whole 1x1 filter again, from L2. So it pays while
// there are few tiles of channels and many pixels. The model counts, in clocks of one multiprocessor, what a block asks
// of each unit (docs/kernels/separable.md derives the counts from the compiled code), and takes the largest, or
// the latency of a block on its own where there are too few to hide it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "separable.h"

namespace cnnext::cuda {
namespace {

constexpr int kLine = 128;                 // bytes of a slice of channels
constexpr double kLaunchMicroseconds = 2;  // of a kernel, from an empty card to an empty card
constexpr double kL2BytesPerClock = 24;    // of one multiprocessor
constexpr double kClocksPerMma = 1.6;      // of one multiprocessor, for 16x8x16 of 16 bits and 16x8x8 of TF32
constexpr double kCopyLatency = 1000;      // clocks from a step's copies to its barrier, on a card at work
constexpr double kBlockLatency = 2500;     // clocks of a block's start and its epilogue
constexpr double kGemmLatency = 5000;      // the same of the implicit GEMM

enum class Arithmetic { kTensorCores, kTf32, kFma };

double bytes_per_clock(const DeviceFacts& device) {
  return device.copy_gigabytes_per_second / device.clock_ghz / device.multiprocessors;
}

double microseconds(double clocks, const DeviceFacts& device) { return clocks / (device.clock_ghz * 1e3); }

/// What a block asks for, in clocks of a multiprocessor or bytes.
struct BlockCost {
  double issue = 0;  // issue slots, four a clock
  double product = 0;
  double l2_bytes = 0;
  double latency = 0;  // of a block that has the multiprocessor to itself
};

/// Clocks of a block that has a multiprocessor to itself, of which its copies alone take `copies`: the fewer warps each
/// of the four schedulers has, the more slots stay empty.
double alone(const BlockCost& block, int threads, double copies, double start_and_end) {
  const double warps = threads / 32 / 4;
  return std::max(std::max(block.issue, block.product) * (1 + 0.5 / warps), copies) + start_and_end;
}

/// Clocks of a launch of `blocks` such blocks, `at_once` on a multiprocessor, that moves `memory_bytes`.
double launch_clocks(const BlockCost& block, int64_t blocks, int64_t at_once, double memory_bytes,
                     const DeviceFacts& device) {
  const auto busiest = static_cast<double>(ceil_div(blocks, device.multiprocessors));
  const double throughput = busiest * std::max({block.issue, block.product, block.l2_bytes / kL2BytesPerClock});
  const double latency =
      static_cast<double>(ceil_div(ceil_div(blocks, device.multiprocessors), at_once)) * block.latency;
  const double memory = memory_bytes / device.multiprocessors / bytes_per_clock(device);
  return std::max({throughput, latency, memory});
}

/// Clocks of the product of an m x n tile over one slice, and its issue slots.
double product_clocks(Arithmetic arithmetic, int m, int n) {
  if (arithmetic == Arithmetic::kFma) return m * n * 32 / 128.0;
  return m / 16 * (n / 8) * 4 * kClocksPerMma;
}
double product_issue(Arithmetic arithmetic, int m, int n) {
  if (arithmetic == Arithmetic::kFma) return m * n * 32 / 32 * 1.25 / 4;
  return m / 16 * (n / 8) * 4 * (arithmetic == Arithmetic::kTf32 ? 3.0 : 1.9) / 4;
}

double bytes_of(const ConvParams& p, int64_t channels, int64_t height, int64_t width) {
  return static_cast<double>(p.N) * channels * height * width * size_of(p.dtype);
}

/// Bytes of the block's operands, without the tensor between the halves: each once.
double outer_bytes(const SeparableProblem& problem) {
  const ConvParams& p = problem.depthwise;
  const double output = bytes_of(p, problem.outputs, p.P, p.Q);
  return bytes_of(p, p.C, p.H, p.W) + output * (problem.has_residual ? 2 : 1) +
         static_cast<double>(problem.outputs) * p.K * size_of(p.dtype);
}

/// A fused configuration and its cost.
struct Candidate {
  LaunchConfig config;
  double microseconds = 0;
};

Candidate make_candidate(const SeparableProblem& problem, Arithmetic arithmetic, const SeparableTileShape& tile,
                         int tile_h) {
  const ConvParams& p = problem.depthwise;
  const int element = size_of(p.dtype), filter = static_cast<int>(p.R), stride = static_cast<int>(p.stride_h);
  const int tile_w = tile.m / tile_h, taps = filter * filter, slice = kLine / element;
  const SeparableLayout layout = separable_layout(tile_h, tile_w, tile.n, filter, stride, p.C, element);

  Candidate candidate;
  LaunchConfig& config = candidate.config;
  config.kernel = Kernel::kSeparableNhwc;
  config.grid[0] = p.N * ceil_div(p.P, tile_h) * ceil_div(p.Q, tile_w) * ceil_div(problem.outputs, tile.n);
  config.block[0] = tile.threads;
  config.shared_bytes = layout.shared_bytes;
  config.tile_h = tile_h, config.tile_w = tile_w, config.columns = tile.n, config.vector = 16 / element;
  config.tf32 = arithmetic == Arithmetic::kTf32;

  const auto steps = static_cast<double>(ceil_div(p.C, slice));
  // Slices of which only half the channels are there are half the work.
  const double filtered = static_cast<double>(ceil_div(p.C, slice / 2)) / 2;
  const double halo = layout.halo_h * layout.halo_w;
  // Instructions of a warp, as counted in the compiled code: for 4 pixels x 4 channels a lane, for copies of 16 bytes,
  // for the depthwise filter's way to shared memory; and what every warp spends on a step, and on a block.
  const double warps = tile.threads / 32;
  const int inputs = (kSeparableColumns - 1) * stride + filter;
  const double strip = 16 * taps + (element == 2 ? 5 : 1) * inputs * filter + taps + 90;
  const double depthwise = tile.m * slice / 16.0 / 32 * strip;
  const double copies = halo * 8 / 32 * 22 + tile.n * 8 / 32.0 * 12 + slice * (taps + 1) / 32.0 * 25 + warps * 120;
  const double epilogue = static_cast<double>(tile.m) * tile.n * element / 16 / 32 * 110 + warps * 250;
  const double product = product_clocks(arithmetic, tile.m, tile.n);

  BlockCost block;
  block.issue =
      (filtered * depthwise + steps * copies + epilogue) / 4 + steps * product_issue(arithmetic, tile.m, tile.n);
  block.product = steps * product;
  block.l2_bytes =
      static_cast<double>(p.C) * element * (halo + tile.n) + static_cast<double>(tile.m) * tile.n * element;
  block.latency = alone(block, tile.threads, (steps + 1) * kCopyLatency, kBlockLatency);
  const int64_t registers = tile.n == 256 ? 232 : tile.threads == 128 || config.tf32 ? 168 : 128;
  const int64_t at_once = std::max<int64_t>(
      1, std::min<int64_t>(problem.device.shared_bytes_per_multiprocessor / (layout.shared_bytes + 1024),
                           problem.device.registers_per_multiprocessor / (registers * tile.threads)));
  const double clocks = launch_clocks(block, config.grid[0], at_once, outer_bytes(problem), problem.device);
  candidate.microseconds = microseconds(clocks, problem.device) + kLaunchMicroseconds;
  return candidate;
}

/// The cheapest rectangle of each tile, cheapest tile first.
void append_fused(const SeparableProblem& problem, Arithmetic arithmetic, std::vector<SeparableConfig>& configs) {
  std::vector<SeparableConfig> tiles;
  for (const SeparableTileShape& tile : kSeparableTiles) {
    if (arithmetic == Arithmetic::kFma && tile.n != 64) continue;
    const Candidate* best = nullptr;
    std::vector<Candidate> rectangles;
    for (int tile_w = kSeparableColumns; tile_w <= 32; tile_w *= 2) {
      rectangles.push_back(make_candidate(problem, arithmetic, tile, tile.m / tile_w));
    }
    for (const Candidate& candidate : rectangles) {
      const bool fits = candidate.config.shared_bytes <= problem.device.shared_bytes_per_block &&
                        candidate.config.grid[0] <= kMaxGridX;
      if (fits && (best == nullptr || candidate.microseconds < best->microseconds)) best = &candidate;
    }
    if (best == nullptr) continue;
    SeparableConfig config;
    config.fused = true, config.kernel = best->config, config.microseconds = best->microseconds;
    tiles.push_back(config);
  }
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const SeparableConfig& a, const SeparableConfig& b) { return a.microseconds < b.microseconds; });
  configs.insert(configs.end(), tiles.begin(), tiles.end());
}

/// What the two kernels take, where they are the depthwise strip kernel and the implicit GEMM.
double predict_two_kernels(const SeparableProblem& problem, Arithmetic arithmetic, const LaunchConfig& pointwise) {
  const ConvParams& p = problem.depthwise;
  const DeviceFacts& device = problem.device;
  const double middle = bytes_of(p, p.K, p.P, p.Q), input = bytes_of(p, p.C, p.H, p.W);
  BlockCost strips;
  strips.issue = middle / size_of(p.dtype) / device.multiprocessors * (p.R * p.S * 1.25 + 6) / 32 / 4;
  strips.latency = kBlockLatency;
  const double first = launch_clocks(strips, device.multiprocessors, 1, input + middle, device);

  const int m = pointwise.tile_h, n = pointwise.tile_w;
  const int64_t parts = std::max(pointwise.parts, 1);
  const auto steps = static_cast<double>(ceil_div(ceil_div(p.K * size_of(p.dtype), kLine), parts));
  BlockCost gemm;
  gemm.product = steps * product_clocks(arithmetic, m, n);
  gemm.issue = steps * (product_issue(arithmetic, m, n) + (m + n) * 8 / 32.0 * 12 / 4) +
               static_cast<double>(m) * n * size_of(p.dtype) / 16 / 32 * 80 / 4;
  gemm.l2_bytes = (m + n) * static_cast<double>(p.K) * size_of(p.dtype) + static_cast<double>(m) * n * size_of(p.dtype);
  // Three steps are on their way.
  gemm.latency = alone(gemm, pointwise.block[0], steps * kCopyLatency / 3, kGemmLatency);
  const int64_t at_once = m * n == 128 * 128 ? 1 : m * n == 128 * 64 ? 2 : 3;
  // A tensor that the L2 cache holds is not read from memory again.
  const double read = middle <= static_cast<double>(device.l2_bytes) / 2 ? 0 : middle;
  const double output = bytes_of(p, problem.outputs, p.P, p.Q);
  const double residual = problem.has_residual ? 2 * output : 0;  // more than its own read: y is read and written again
  const double second =
      launch_clocks(gemm, pointwise.grid[0] * parts, at_once, outer_bytes(problem) - input + read + residual, device);
  const int launches = 2 + (pointwise.parts > 0 ? 1 : 0) + (problem.has_residual ? 1 : 0);
  return microseconds(first + second, device) + launches * kLaunchMicroseconds;
}

constexpr bool is_multiple(int64_t value, int64_t of) { return value % of == 0; }

/// Why the fused kernel cannot run the problem; null if it can.
const char* refusal(const SeparableProblem& problem) {
  const ConvParams& p = problem.depthwise;
  if (p.dtype == DType::kFloat64) return "float64 has no tensor cores";
  if (p.layout != Layout::kNHWC) return "the input is not channels_last";
  if (p.K != p.C) return "the depthwise half has a channel multiplier";
  if (p.R != p.S || (p.R != 3 && p.R != 5)) return "the depthwise filter is not 3x3 or 5x5";
  if (p.stride_h != p.stride_w || p.stride_h > 2) return "the stride is not 1 or 2";
  if (p.dilation_h != 1 || p.dilation_w != 1) return "the filter is dilated";
  const int vector = 16 / size_of(p.dtype);
  const auto aligned = [&](const Strides4& strides) {
    return is_multiple(strides.n, vector) && is_multiple(strides.h, vector) && is_multiple(strides.w, vector);
  };
  if (problem.alignment < 16 || !is_multiple(p.C, vector) || !is_multiple(problem.outputs, vector) ||
      !aligned(p.x_strides) || !aligned(problem.y_strides)) {
    return "channels, strides or addresses are no multiples of 16 bytes";
  }
  // Within an image the kernel's offsets, in bytes, are of 32 bits, halo included.
  const auto extent = [&](const Strides4& strides, int64_t height, int64_t width, int64_t around) {
    return ((height + around) * std::abs(strides.h) + (width + around) * std::abs(strides.w)) * size_of(p.dtype);
  };
  const int64_t around = 2 * (64 + std::max(p.pad_h, p.pad_w));
  if (extent(p.x_strides, p.H, p.W, around) > kMaxGridX || extent(problem.y_strides, p.P, p.Q, around) > kMaxGridX) {
    return "an image is beyond 2^31 bytes";
  }
  constexpr int64_t kMost = int64_t{1} << 28;  // of a position, with room for the sums in the kernel's 32 bits
  const auto small = [](auto... values) { return ((values < kMost) && ...); };
  if (!small(p.N, p.C, p.H, p.W, p.P, p.Q, problem.outputs, p.pad_h, p.pad_w, p.P * 2, p.Q * 2)) {
    return "a size is beyond 2^28";
  }
  return nullptr;
}

std::string in_microseconds(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f us", value);
  return text;
}

}  // namespace

std::string SeparableConfig::to_string() const {
  std::string text =
      fused ? "fused: " + kernel.to_string() : "two kernels: " + kernel.to_string() + ", then " + pointwise.to_string();
  if (microseconds > 0) text += ", predicted " + in_microseconds(microseconds);
  return text;
}

std::vector<SeparableConfig> separable_configs(const SeparableProblem& problem) {
  SeparableConfig two;
  two.kernel = depthwise_forward_configs(depthwise_half(problem)).front();
  two.pointwise = grouped_forward_configs(pointwise_half(problem)).front();
  if (refusal(problem) != nullptr) return {two};

  const bool is_float = problem.depthwise.dtype == DType::kFloat32;
  const Arithmetic fastest = !is_float            ? Arithmetic::kTensorCores
                             : problem.allow_tf32 ? Arithmetic::kTf32
                                                  : Arithmetic::kFma;
  two.microseconds = predict_two_kernels(problem, fastest, two.pointwise);
  std::vector<SeparableConfig> configs;
  append_fused(problem, fastest, configs);
  const bool fusing_pays = !configs.empty() && configs.front().microseconds < two.microseconds;
  configs.insert(fusing_pays ? configs.begin() + 1 : configs.begin(), two);
  if (fastest == Arithmetic::kTf32) append_fused(problem, Arithmetic::kFma, configs);
  return configs;
}

std::string explain_separable(const SeparableProblem& problem) {
  const std::vector<SeparableConfig> configs = separable_configs(problem);
  const SeparableConfig& first = configs.front();
  if (const char* reason = refusal(problem)) return std::string("two kernels: ") + reason;
  if (configs.size() == 1) return "two kernels: no tile fits into the device's shared memory";
  const SeparableConfig& second = configs[1];
  const std::string times = "predicted " + in_microseconds(first.microseconds) + " against " +
                            in_microseconds(second.microseconds) + (first.fused ? " in two kernels" : " in one kernel");
  return (first.fused ? "one kernel: " : "two kernels: ") + times + " (" + first.kernel.to_string() + ")";
}

}  // namespace cnnext::cuda
