// The activation as kernels apply it to the accumulators that they hold in registers.
#pragma once

#include "activation.h"

namespace cnnext::cpu::CNNEXT_ISA {

/// Applies a smooth activation to n vectors. Out of line: it is rare, and its code is long.
template <class A>
[[gnu::noinline]] void activate_all(Vec<A>* v, int n, Activation activation) {
  for (int i = 0; i < n; ++i) v[i] = activate(v[i], activation);
}

/// The activation, arranged so that none, relu and relu6 cost two instructions and no branch that is taken.
template <class A>
class Epilogue {
 public:
  explicit Epilogue(Activation activation)
      : lower_(clamps(activation) && activation != Activation::kNone ? A(0) : -std::numeric_limits<A>::infinity()),
        upper_(activation == Activation::kRelu6 ? A(6) : std::numeric_limits<A>::infinity()),
        other_(clamps(activation) ? Activation::kNone : activation) {}

  template <int n>
  CNNEXT_INLINE void apply(Vec<A> (&v)[n]) const {
    const Vec<A> lower(lower_), upper(upper_);
    for (int i = 0; i < n; ++i) v[i] = min(upper, max(lower, v[i]));
    if (__builtin_expect(other_ != Activation::kNone, 0)) {
      // A copy, so that v itself can stay in registers.
      Vec<A> in_memory[n];
      for (int i = 0; i < n; ++i) in_memory[i] = v[i];
      activate_all(in_memory, n, other_);
      for (int i = 0; i < n; ++i) v[i] = in_memory[i];
    }
  }

 private:
  static bool clamps(Activation a) {
    return a == Activation::kNone || a == Activation::kRelu || a == Activation::kRelu6;
  }

  A lower_, upper_;
  Activation other_;
};

}  // namespace cnnext::cpu::CNNEXT_ISA
