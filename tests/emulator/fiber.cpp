#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cnnext::emulator {

#ifdef CNNEXT_EMULATOR_UCONTEXT

void Fiber::prepare(void* bottom, size_t bytes, void (*entry)()) {
  bottom_ = bottom;
  bytes_ = bytes;
  getcontext(&context_);
  context_.uc_stack = {.ss_sp = bottom, .ss_flags = 0, .ss_size = bytes};
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
}

#else

// Saves what a function must preserve on the old stack, whose pointer goes to *save, and takes the same from the new.
extern "C" void cnnext_emulator_switch(void** save, void* to);
asm(R"(
.text
.hidden cnnext_emulator_switch
.globl cnnext_emulator_switch
.type cnnext_emulator_switch,@function
cnnext_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cnnext_emulator_switch, .-cnnext_emulator_switch
)");

void Fiber::prepare(void* bottom, size_t bytes, void (*entry)()) {
  bottom_ = bottom;
  bytes_ = bytes;
  // Stacks lie a power of two apart: without an offset their tops would share a few sets of the cache.
  const size_t offset = reinterpret_cast<uintptr_t>(bottom) / bytes * 7 % 64 * 64;
  void** top = reinterpret_cast<void**>(static_cast<char*>(bottom) + bytes - 64 - offset);
  *--top = nullptr;  // the return address of `entry`: an unwinder stops here
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // the registers
  stack_pointer_ = top;
}

#endif

void Fiber::switch_to(Fiber& next, [[maybe_unused]] bool done) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(done ? nullptr : &fake_stack_, next.bottom_, next.bytes_);
#endif
#ifdef CNNEXT_EMULATOR_UCONTEXT
  swapcontext(&context_, &next.context_);
#else
  cnnext_emulator_switch(&stack_pointer_, next.stack_pointer_);
#endif
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::entered([[maybe_unused]] Fiber& previous) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &previous.bottom_, &previous.bytes_);
#endif
}

void StackPool::grow() {
  constexpr size_t kPage = 4096;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || count_ == kMax) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);
  all_[count_++] = free_[free_count_++] = memory;
}

void* StackPool::take() {
  if (free_count_ == 0) grow();
  return free_[--free_count_];
}

void StackPool::give_back(void* stack) { free_[free_count_++] = stack; }

void StackPool::reclaim() {
  free_count_ = 0;
  for (int i = 0; i < count_; ++i) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(all_[i], kBytes);  // what guards the frames that were never left
#endif
    give_back(all_[i]);
  }
}

}  // namespace cnnext::emulator
