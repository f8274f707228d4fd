// The tensor cores' instructions of csrc/cuda/matrix_instructions.h on the CPU: the 32 lanes meet, each looks up in
// what the others brought what the instruction's definition says.
#pragma once

#include <bit>
#include <cmath>

#include "emulator.h"

namespace cnnext::emulator {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Pair {
  T low, high;
};

/// Row `row` of the 8x8 matrix whose rows the lanes 8 * matrix ... named, elements 2 * column and the next.
template <bool kTransposed>
CNNEXT_EMULATOR_FUNCTION void load_matrices(unsigned (&fragment)[4], const void* shared_row, const Line& line) {
  const Place place = CNNEXT_EMULATOR_PLACE(line);
  check_access(shared_row, 16, Access::kRead, place);
  struct Row {
    uint16_t elements[8];
  };
  Row row;
  std::memcpy(&row, shared_row, sizeof(row));
  exchange(kAllLanes, row, place, [&](const Meeting& meeting) __attribute__((no_sanitize("thread"))) {
    const int major = lane() / 4, minor = lane() % 4 * 2;
    for (int matrix = 0; matrix < 4; ++matrix) {
      unsigned words[2];
      for (int i = 0; i < 2; ++i) {
        const int from_row = kTransposed ? minor + i : major, element = kTransposed ? major : minor + i;
        words[i] = meeting.read<Row>(8 * matrix + from_row).elements[element];
      }
      fragment[matrix] = words[0] | words[1] << 16;
    }
    return 0;
  });
}

CNNEXT_EMULATOR_FUNCTION static float element_of(unsigned word, int index, __half) {
  __half_raw raw;
  raw.x = static_cast<unsigned short>(word >> 16 * index);
  return __half2float(__half(raw));
}
CNNEXT_EMULATOR_FUNCTION static float element_of(unsigned word, int index, __nv_bfloat16) {
  return std::bit_cast<float>(word >> 16 * index << 16);
}

/// D += A * B for A 16 x kDepth, B kDepth x 8. A lane brings the elements of its fragments, of A those of rows lane / 4
/// and lane / 4 + 8, `kTogether` neighbours of each 8 (8 of TF32: 4) columns at a time.
template <int kDepth, int kTogether>
struct Factors {
  static constexpr int kParts = kDepth / (4 * kTogether);  // of the depth, of 4 lanes each
  float a[kParts][2][kTogether];                           // [part][row][element]
  float b[kParts][kTogether];
};

template <int kDepth, int kTogether>
CNNEXT_EMULATOR_FUNCTION void multiply(float (&d)[4], const Factors<kDepth, kTogether>& mine, const Place& place) {
  using Fragment = Factors<kDepth, kTogether>;
  exchange(kAllLanes, mine, place, [&](const Meeting& meeting) __attribute__((no_sanitize("thread"))) {
    const int row = lane() / 4, column = lane() % 4 * 2;
    for (int quarter = 0; quarter < 4; ++quarter) {
      const auto a = meeting.read<Fragment>(row * 4 + quarter);
      const auto b = meeting.read<Fragment>(column * 4 + quarter);
      const auto next_b = meeting.read<Fragment>((column + 1) * 4 + quarter);
      for (int part = 0; part < Fragment::kParts; ++part) {
        for (int i = 0; i < kTogether; ++i) {
          d[0] += a.a[part][0][i] * b.b[part][i];
          d[1] += a.a[part][0][i] * next_b.b[part][i];
          d[2] += a.a[part][1][i] * b.b[part][i];
          d[3] += a.a[part][1][i] * next_b.b[part][i];
        }
      }
    }
    return 0;
  });
}

/// 16-bit elements, two in a word.
template <int kDepth, class T>
CNNEXT_EMULATOR_FUNCTION void multiply_words(float (&d)[4], const unsigned* a, const unsigned* b, T element,
                                             const Place& place) {
  Factors<kDepth, 2> mine;
  for (int part = 0; part < kDepth / 8; ++part) {
    for (int i = 0; i < 2; ++i) {
      for (int row = 0; row < 2; ++row) mine.a[part][row][i] = element_of(a[2 * part + row], i, element);
      mine.b[part][i] = element_of(b[part], i, element);
    }
  }
  multiply(d, mine, place);
}

}  // namespace cnnext::emulator

namespace cnnext::cuda {

CNNEXT_EMULATOR_FUNCTION static void load_matrices(unsigned (&fragment)[4], const void* shared_row,
                                                   const emulator::Line& line = emulator::Line::current()) {
  emulator::load_matrices<false>(fragment, shared_row, line);
}

CNNEXT_EMULATOR_FUNCTION static void load_matrices_transposed(unsigned (&fragment)[4], const void* shared_row,
                                                              const emulator::Line& line = emulator::Line::current()) {
  emulator::load_matrices<true>(fragment, shared_row, line);
}

template <class T>
CNNEXT_EMULATOR_FUNCTION void multiply_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                                               T element, const emulator::Line& line = emulator::Line::current()) {
  const unsigned b[2] = {b0, b1};
  emulator::multiply_words<16>(d, a, b, element, CNNEXT_EMULATOR_PLACE(line));
}

template <class T>
CNNEXT_EMULATOR_FUNCTION void multiply_16x8x8(float (&d)[4], unsigned a0, unsigned a1, unsigned b, T element,
                                              const emulator::Line& line = emulator::Line::current()) {
  const unsigned a[2] = {a0, a1};
  emulator::multiply_words<8>(d, a, &b, element, CNNEXT_EMULATOR_PLACE(line));
}

CNNEXT_EMULATOR_FUNCTION static void multiply_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                          unsigned b1,
                                                          const emulator::Line& line = emulator::Line::current()) {
  // The hardware reads the sign, 8 bits of exponent and 10 of mantissa.
  const auto value = [](unsigned bits) { return std::bit_cast<float>(bits & 0xffffe000u); };
  emulator::Factors<8, 1> mine;
  for (int part = 0; part < 2; ++part) {
    for (int row = 0; row < 2; ++row) mine.a[part][row][0] = value(a[2 * part + row]);
    mine.b[part][0] = value(part == 0 ? b0 : b1);
  }
  emulator::multiply(d, mine, CNNEXT_EMULATOR_PLACE(line));
}

/// To 10 bits of mantissa, ties away from zero.
CNNEXT_EMULATOR_FUNCTION static unsigned round_to_tf32(float x) {
  const auto bits = std::bit_cast<unsigned>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace cnnext::cuda
