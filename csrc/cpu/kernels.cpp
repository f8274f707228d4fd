#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace cnnext::cpu {

// Defined in isa/: one set per instruction set.
namespace baseline {
extern const OpKernels kDepthwiseKernels, kGroupedKernels, kPointwiseKernels;
extern const FusedKernels kFusedKernels;
}  // namespace baseline
#if defined(__x86_64__)
namespace avx2 {
extern const OpKernels kDepthwiseKernels, kGroupedKernels, kPointwiseKernels;
extern const FusedKernels kFusedKernels;
}  // namespace avx2
namespace avx512 {
extern const OpKernels kDepthwiseKernels, kGroupedKernels, kPointwiseKernels;
extern const FusedKernels kFusedKernels;
}  // namespace avx512
#endif

namespace {

struct Candidate {
  bool supported;
  KernelTable table;
};

// Widest first.
const Candidate* candidates(int* count) {
  static const Candidate all[] = {
#if defined(__x86_64__)
      {__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
       {"avx512", avx512::kDepthwiseKernels, avx512::kGroupedKernels, avx512::kPointwiseKernels,
        avx512::kFusedKernels}},
      {__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"),
       {"avx2", avx2::kDepthwiseKernels, avx2::kGroupedKernels, avx2::kPointwiseKernels, avx2::kFusedKernels}},
#endif
      {true,
       {"baseline", baseline::kDepthwiseKernels, baseline::kGroupedKernels, baseline::kPointwiseKernels,
        baseline::kFusedKernels}},
  };
  *count = static_cast<int>(sizeof(all) / sizeof(all[0]));
  return all;
}

const KernelTable& choose() {
  if (const char* wanted = std::getenv("CNNEXT_CPU_ISA")) {
    if (const KernelTable* table = kernels_for(wanted)) return *table;
  }
  int count = 0;
  const Candidate* all = candidates(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i].supported) return all[i].table;
  }
  return all[count - 1].table;
}

}  // namespace

const KernelTable* kernels_for(const char* isa) {
  int count = 0;
  const Candidate* all = candidates(&count);
  for (int i = 0; i < count; ++i) {
    if (all[i].supported && std::strcmp(all[i].table.isa, isa) == 0) return &all[i].table;
  }
  return nullptr;
}

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace cnnext::cpu

/// `kernels_for` with a C name, so that tests can call the kernels of every instruction set through ctypes.
extern "C" __attribute__((visibility("default"))) const cnnext::cpu::KernelTable* cnnext_cpu_kernels_for(
    const char* isa) {
  return cnnext::cpu::kernels_for(isa);
}
