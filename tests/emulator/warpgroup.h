// The matrix products of a warpgroup (csrc/cuda/wgmma_instructions.h).
//
// A product reads its factors at some time between its start and the wait for it, at random one or the other. Its sums
// hold NaN meanwhile.
#pragma once

#include <cstddef>
#include <cstdint>

#include "place.h"

namespace cnnext::emulator {

/// D += A * B, 64 x `columns` x 16.
struct Product {
  uint64_t a, b;  // matrix descriptors
  int columns;
  bool columns_along_line;  // of B
  bool bfloat16;

  bool operator==(const Product&) const = default;
};

// All lanes of a warp call together, and all warps of a warpgroup start the same products.

void wgmma_fence(const Place& place);
void wgmma_multiply(const Product& product, float* sums, const Place& place);
void wgmma_commit(const Place& place);
void wgmma_wait(int pending, const Place& place);

void begin_warpgroups();

/// Whether a thread of the block has started a product that it has not waited for.
bool products_are_pending();

/// The thread ends: fails if one of its products was never waited for.
void finish_products();

/// A launch has failed: the sums of what was under way are memory like any other again.
void abandon_products();

/// Where the product was started that has these bytes, on the stack of the thread that runs now, among its sums.
const Place* product_with_sums(uintptr_t address, size_t bytes);

}  // namespace cnnext::emulator
