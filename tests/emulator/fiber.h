// A fiber: a stack and what is needed to go on running on it. One fiber runs at a time, until it switches to another.
#pragma once

#include <cstddef>

// Hand-written for x86-64, a few nanoseconds; elsewhere ucontext, which makes a system call each time.
#if !defined(__x86_64__) && !defined(CNNEXT_EMULATOR_UCONTEXT)
#define CNNEXT_EMULATOR_UCONTEXT
#endif

#ifdef CNNEXT_EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace cnnext::emulator {

class Fiber {
 public:
  /// Makes the next switch to this fiber call `entry`, which never returns, on the stack [bottom, bottom + bytes).
  void prepare(void* bottom, size_t bytes, void (*entry)());

  /// Leaves this fiber, which runs now, for `next`; returns when some fiber switches back. A fiber that is `done` is
  /// never switched to again.
  void switch_to(Fiber& next, bool done = false);

  /// The first call of every `entry`. `previous` is the fiber that switched here.
  static void entered(Fiber& previous);

 private:
#ifdef CNNEXT_EMULATOR_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  // For the address sanitizer, which has to know the stack that it is on.
  const void* bottom_ = nullptr;
  size_t bytes_ = 0;
  void* fake_stack_ = nullptr;
};

/// Stacks of one size, each with a page below it that faults. What is given back first is taken last, so a launch whose
/// threads never wait for each other runs on one stack that stays in the cache.
class StackPool {
 public:
  static constexpr size_t kBytes = 256 * 1024;

  void* take();
  void give_back(void* stack);
  /// All stacks are free again, whatever runs on them.
  void reclaim();

 private:
  void grow();

  static constexpr int kMax = 1024;
  void* all_[kMax];
  void* free_[kMax];
  int count_ = 0, free_count_ = 0;
};

}  // namespace cnnext::emulator
