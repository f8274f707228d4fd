"""Mutants that no test can kill, since the changed kernel does the same: each with the reason."""

from __future__ import annotations

#: The file, the changed line and the line after it, and why the results are the same.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "depthwise_forward_nhwc.cu",
        "static constexpr int kColumns = (kWidth) * kStride + kFilter;  // of inputs that a strip reads",
        "static constexpr bool kWeightsInRegisters = kFilter == 3;",
    ): "reads columns, inside the image, that it then does not use",
    (
        "depthwise_forward_nhwc.cu",
        "const auto launcher = params.stride_w == 1 ? run<1, narrow.value, filter.value, decltype(element)>",
        ": run<2, narrow.value, filter.value, decltype(element)>;",
    ): "is_strip_problem takes only strides that are equal",
    (
        "depthwise_strip_nhwc.cuh",
        "for (int i = 0; i <= kRow; i += kPiece) {",
        "const float* const piece = own + offset(r, i);",
    ): "the turn more, if there is one, is for a piece of no elements",
    (
        "depthwise_backward_weight_nchw.cu",
        "for (int i = 0; i <= kWidth; ++i) {",
        "inside_ |= static_cast<unsigned>(w + i) < static_cast<unsigned>(x.W) ? 1u << i : 0u;",
    ): "sets a bit that nobody asks for",
    (
        "depthwise_backward_weight_nhwc.cu",
        ";",  # instead of copy_async_wait<0>()
        "__syncthreads();",
    ): "the loop before has waited for all tiles; the groups that are left are empty",
    (
        "depthwise_backward_weight_nhwc.cu",
        "if (copied <= count && active) {",
        "unsigned char* const stage = smem_tiles + copy_stage * g.stage_bytes + threadIdx.x * kAccessBytes;",
    ): "copies a tile more, of the next part, into a stage that nobody reads again",
    (
        "implicit_gemm_wgmma.cuh",
        ";  // the hardware wants whole warps at a block's barrier; one lane comes from its copies",
        "__syncthreads();",
    ): "in the emulator, whose barrier takes threads one by one",
    (
        "implicit_gemm.cuh",
        ";",  # instead of copy_async_wait<0>()
        "__syncthreads();",
    ): "the loop before has waited for all tiles; the groups that are left are empty",
    (
        "depthwise_backward_weight_general.cu",
        "if (tap == taps && !with_bias) continue;",
        "",
    ): "makes sums of dy that nobody asked for, where the workspace has room for them",
    (
        "depthwise_backward_input_nhwc.cu",
        "static constexpr int kRows = (kFilter + 1) * 2;      // pairs of rows in flight",
        "static constexpr int kColumns = kWidth + kRows - 1;  // of dy that a strip reads",
    ): "carries rows and columns along that no tap takes",
    (
        "depthwise_forward_general.cu",
        "if (params.layout != Layout::kNHWC) {",
        "k = rest % params.K, rest /= params.K;",
    ): "the order in which threads take the outputs, for the sake of time",
    (
        "depthwise_strip_nhwc.cuh",
        "(kStripLanes) * kPiece;  // one lane more, so that the pieces begin in different banks",
        "static constexpr int kSize = kFilter * kPieces * kPitch;",
    ): "conflicts of banks cost time",
    (
        "device.py",
        "return tl.where(x <= 0, 0.0, tl.where(x > 6.0, 6.0, x))",
        "",
    ): "0 gives 0 either way",
    (
        "separable_nhwc.cuh",
        "const bool of_filter = (i + 1) * kThreads < kOfFilter || index < kOfFilter;",
        "const T* const from = of_filter ? filter + index : bias + (index - kOfFilter);",
    ): "asks at run time what is known when compiling",
    (
        "separable_nhwc.cuh",
        "for (int phase = 0; phase <= 2; ++phase) {",
        "if (phase == multiplies_in) {",
    ): "filters the slice once more",
    (
        "separable_nhwc.cuh",
        "if (step >= 0) copy_for(step + 1);",
        "const bool has_next = step + 1 < slices;",
    ): "copies once more what is on its way",
    (
        "separable_nhwc.cuh",
        "const bool half = channels < kLine<T> / 2;",
        "const int lanes_log2 = half ? kLanesLog2 - 1 : kLanesLog2;",
    ): "of half a slice, computes the zeros of the other half too",
    (
        "separable_nhwc.cu",
        "narrow(p.stride_w), p.C, size_of(p.dtype));",
        "shape.layout = layout;",
    ): "the planner takes only strides that are equal",
    (
        "separable_nhwc.cu",
        "constexpr bool kTwo = Tile::kM != 64 && !std::is_same_v<Math, Tf32Math>;",
        "constexpr int kMinBlocks = Tile::kThreads == 128 ? 3 : kTwo ? 2 : 1;",
    ): "launch bounds: other registers, the same results; the static report's budget has them",
    (
        "separable_nhwc.cu",
        "constexpr int kMinBlocks = Tile::kThreads != 128 ? 3 : kTwo ? 2 : 1;",
        "launch(separable_nhwc_kernel<T, Math, Tile, filter(), stride(), kMinBlocks>,",
    ): "launch bounds: other registers, the same results; the static report's budget has them",
    (
        "separable_residual.cu",
        "const int64_t elements = params.N * params.K + params.P * params.Q;",
        "const LaunchConfig config = thread_per_element(Kernel::kSeparableNhwc, elements);",
    ): "other numbers of threads, which take all elements between them",
    (
        "separable_residual.cu",
        "const int64_t elements = params.N * params.K * params.P * params.P;",
        "const LaunchConfig config = thread_per_element(Kernel::kSeparableNhwc, elements);",
    ): "other numbers of threads, which take all elements between them",
    (
        "separable_residual.cu",
        "const int64_t elements = params.N * params.K * params.Q * params.Q;",
        "const LaunchConfig config = thread_per_element(Kernel::kSeparableNhwc, elements);",
    ): "other numbers of threads, which take all elements between them",
}
