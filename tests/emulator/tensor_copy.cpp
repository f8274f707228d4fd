#include "tensor_copy.h"

#include <algorithm>
#include <stdexcept>

#include "mbarrier.h"
#include "memory.h"
#include "shared_memory.h"

namespace cnnext::emulator {
namespace {

constexpr int kLineBytes = 128, kPieceBytes = 16, kElementBytes = 2;
constexpr int kPieceElements = kPieceBytes / kElementBytes;

void demand(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(std::string("tensor map: ") + what);
}

void check_address(const void* address) {
  demand(reinterpret_cast<uintptr_t>(address) % 16 == 0, "the tensor must be 16-byte aligned");
}

void check_dimension(int64_t size) { demand(size >= 1 && size <= int64_t{1} << 32, "a size must be 1 to 2^32"); }

void check_stride(int64_t elements) {
  demand(elements > 0 && elements % kPieceElements == 0 && elements * kElementBytes < int64_t{1} << 40,
         "a stride must be a multiple of 16 bytes, and less than 2^40");
}

void check_corner(int64_t corner) { demand(corner >= -128 && corner <= 127, "a corner must be -128 to 127"); }

void check_step(int step) { demand(step >= 1 && step <= 8, "a step must be 1 to 8"); }

/// A copy under construction, line by line.
class Lines {
 public:
  Lines(void* shared, const Place& place) : to_(static_cast<unsigned char*>(shared)), place_(place) {
    if (!in_shared_memory(shared)) fail(place, "tensor copy to %p, which is not shared memory", shared);
    if (shared_address(shared) % cuda::kSwizzleAlignment != 0) {
      fail(place, "tensor copy to shared memory + %zu: with the 128-byte swizzle a tile starts at a multiple of 1024",
           static_cast<size_t>(shared_address(shared)));
    }
  }

  /// The line whose first element is element `first` of `elements` at `from`; zeros where `from` is null.
  void add(const unsigned char* from, int64_t first, int64_t elements) {
    for (int i = 0; i < kLineBytes / kPieceBytes; ++i) {
      const int swizzled = i ^ static_cast<int>(shared_address(to_) / kLineBytes % 8);
      const int64_t element = first + i * kPieceElements;
      const bool inside = from != nullptr && element >= 0 && element < elements;
      const unsigned char* piece = inside ? from + element * kElementBytes : nullptr;
      const int64_t count = inside ? std::min<int64_t>(elements - element, kPieceElements) : 0;
      for (int64_t j = 0; j < count; ++j) {
        check_uncounted(piece + j * kElementBytes, kElementBytes, Access::kRead, place_);
      }
      copy_.pieces.push_back({to_ + swizzled * kPieceBytes, piece, static_cast<size_t>(count * kElementBytes)});
    }
    to_ += kLineBytes;
  }

  void start(const uint64_t* barrier) {
    copy_.place = place_;
    start_tensor_copy(barrier, std::move(copy_));
  }

 private:
  unsigned char* to_;
  const Place& place_;
  TensorCopy copy_;
};

const unsigned char* bytes(const void* address) { return static_cast<const unsigned char*>(address); }

bool inside(int64_t index, int64_t size) { return index >= 0 && index < size; }

}  // namespace

TensorMap make_tiled_map(const cuda::TiledTensor& tensor) {
  check_address(tensor.address);
  for (const int64_t size : tensor.sizes) check_dimension(size);
  for (const int64_t stride : tensor.strides) check_stride(stride);
  demand(tensor.lines >= 1 && tensor.lines <= 256, "a tile must have 1 to 256 lines");
  TensorMap map;
  map.kind = TensorMap::Kind::kTiled, map.tiled = tensor;
  return map;
}

TensorMap make_pixel_map(const cuda::PixelColumns& tensor) {
  check_address(tensor.address);
  for (const int64_t size : {tensor.channels, tensor.width, tensor.height, tensor.images}) check_dimension(size);
  for (const int64_t stride : {tensor.stride_w, tensor.stride_h, tensor.stride_n}) check_stride(stride);
  for (const int corner : {tensor.lower_w, tensor.lower_h, tensor.upper_w(), tensor.upper_h()}) check_corner(corner);
  check_step(tensor.step_w), check_step(tensor.step_h);
  demand(tensor.outputs_w >= 1 && tensor.outputs_h >= 1, "the box must not be empty");
  demand(tensor.pixels >= 1 && tensor.pixels <= 1024, "a column must have 1 to 1024 pixels");
  TensorMap map;
  map.kind = TensorMap::Kind::kPixels, map.pixels = tensor;
  return map;
}

void copy_tile(void* shared, const TensorMap& map, const uint64_t* barrier, const int (&index)[3], const Place& place) {
  if (map.kind != TensorMap::Kind::kTiled) fail(place, "tensor copy by a map of another kind");
  const cuda::TiledTensor& tensor = map.tiled;
  Lines lines(shared, place);
  for (int i = 0; i < tensor.lines; ++i) {
    const int64_t outer = int64_t{index[2]} + i;
    const bool exists = inside(index[1], tensor.sizes[1]) && inside(outer, tensor.sizes[2]);
    const int64_t offset = index[1] * tensor.strides[0] + outer * tensor.strides[1];
    lines.add(exists ? bytes(tensor.address) + offset * kElementBytes : nullptr, index[0], tensor.sizes[0]);
  }
  lines.start(barrier);
}

void copy_pixels(void* shared, const TensorMap& map, const uint64_t* barrier, int channel, int w, int h, int n,
                 int offset_w, int offset_h, const Place& place) {
  if (map.kind != TensorMap::Kind::kPixels) fail(place, "tensor copy by a map of another kind");
  const cuda::PixelColumns& tensor = map.pixels;
  for (const int offset : {offset_w, offset_h}) {
    if (offset < 0 || offset > cuda::kMaxPixelOffset) fail(place, "tensor copy: an offset of %d, not 0 to 255", offset);
  }
  const int64_t last_w = tensor.width - 1 + tensor.upper_w(), last_h = tensor.height - 1 + tensor.upper_h();
  const auto on_walk = [](int at, int lower, int64_t last, int step) {
    return at >= lower && at <= last && (at - lower) % step == 0;
  };
  if (!on_walk(w, tensor.lower_w, last_w, tensor.step_w) || !on_walk(h, tensor.lower_h, last_h, tensor.step_h)) {
    fail(place, "tensor copy: the walk does not come to pixel (w %d, h %d)", w, h);
  }
  Lines lines(shared, place);
  for (int i = 0; i < tensor.pixels; ++i) {
    const int64_t from_w = w + offset_w, from_h = h + offset_h;
    const bool exists = inside(from_w, tensor.width) && inside(from_h, tensor.height) && inside(n, tensor.images);
    const int64_t offset = from_w * tensor.stride_w + from_h * tensor.stride_h + n * tensor.stride_n;
    lines.add(exists ? bytes(tensor.address) + offset * kElementBytes : nullptr, channel, tensor.channels);
    w += tensor.step_w;
    if (w > last_w) w = tensor.lower_w, h += tensor.step_h;
    if (h > last_h) h = tensor.lower_h, ++n;
  }
  lines.start(barrier);
}

}  // namespace cnnext::emulator
