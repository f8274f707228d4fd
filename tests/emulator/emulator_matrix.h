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

/// D += A * B for kDepth = 16 or 8 elements of 16 bits: `A` a fragment of kDepth / 4 words, `B` of kDepth / 8.
template <int kDepth, class T>
CNNEXT_EMULATOR_FUNCTION void multiply(float (&d)[4], const unsigned* a, const unsigned* b, T element,
                                       const Line& line) {
  struct Factors {
    unsigned a[kDepth / 4], b[kDepth / 8];
  };
  Factors mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  exchange(kAllLanes, mine, CNNEXT_EMULATOR_PLACE(line),
           [&](const Meeting& meeting) __attribute__((no_sanitize("thread"))) {
             for (int i = 0; i < 4; ++i) {
               const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
               for (int k = 0; k < kDepth; ++k) {
                 const int part = k / 8, pair = k % 8 / 2;
                 const unsigned a_word = meeting.read<Factors>(row % 8 * 4 + pair).a[row / 8 + 2 * part];
                 const unsigned b_word = meeting.read<Factors>(column * 4 + pair).b[part];
                 d[i] += element_of(a_word, k % 2, element) * element_of(b_word, k % 2, element);
               }
             }
             return 0;
           });
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
  emulator::multiply<16>(d, a, b, element, line);
}

template <class T>
CNNEXT_EMULATOR_FUNCTION void multiply_16x8x8(float (&d)[4], unsigned a0, unsigned a1, unsigned b, T element,
                                              const emulator::Line& line = emulator::Line::current()) {
  const unsigned a[2] = {a0, a1};
  emulator::multiply<8>(d, a, &b, element, line);
}

CNNEXT_EMULATOR_FUNCTION static void multiply_16x8x8_tf32(float (&d)[4], const unsigned (&a)[4], unsigned b0,
                                                          unsigned b1,
                                                          const emulator::Line& line = emulator::Line::current()) {
  struct Factors {
    unsigned a[4], b[2];
  };
  const Factors mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulator::exchange(emulator::kAllLanes, mine, CNNEXT_EMULATOR_PLACE(line),
                     [&](const emulator::Meeting& meeting) __attribute__((no_sanitize("thread"))) {
                       // The hardware reads the sign, 8 bits of exponent and 10 of mantissa.
                       const auto value = [](unsigned bits) { return std::bit_cast<float>(bits & 0xffffe000u); };
                       for (int i = 0; i < 4; ++i) {
                         const int row = emulator::lane() / 4 + i / 2 * 8, column = emulator::lane() % 4 * 2 + i % 2;
                         for (int k = 0; k < 8; ++k) {
                           const Factors from_a = meeting.read<Factors>(row % 8 * 4 + k % 4);
                           const Factors from_b = meeting.read<Factors>(column * 4 + k % 4);
                           d[i] += value(from_a.a[row / 8 + 2 * (k / 4)]) * value(from_b.b[k / 4]);
                         }
                       }
                       return 0;
                     });
}

/// To 10 bits of mantissa, ties away from zero.
CNNEXT_EMULATOR_FUNCTION static unsigned round_to_tf32(float x) {
  const auto bits = std::bit_cast<unsigned>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

}  // namespace cnnext::cuda
