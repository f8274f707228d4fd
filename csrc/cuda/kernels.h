// Entry points of the CUDA kernels: plain C++, no torch. Each launches on `stream` and returns without waiting; the
// caller checks cudaGetLastError. `config` is one that the op's planner lists for the problem (launch_config.h).
#pragma once

#include "../conv_params.h"
#include "launch_config.h"

struct CUstream_st;

namespace cnnext::cuda {

using Stream = CUstream_st*;

/// y = activation(conv(x, w) + bias). `bias` (K) may be null.
void depthwise_forward(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                       const void* bias, void* y, Stream stream);

/// dx, the gradient with respect to x of a convolution whose output has gradient dy.
void depthwise_backward_input(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                              void* dx, Stream stream);

/// dw, a contiguous filter, and dbias (K), which may be null. `workspace` has workspace_bytes(...), 16-byte aligned.
void depthwise_backward_weight(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                               void* dw, void* dbias, void* workspace, Stream stream);

/// The same for grouped, dense and 1x1 convolution. `filter_channels_last`: w, or dw, lies in memory as
/// [K][R][S][C / groups] instead of [K][C / groups][R][S]. `workspace` has workspace_bytes(...), 16-byte aligned.
void grouped_forward(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last, const void* x,
                     const void* w, const void* bias, void* y, void* workspace, Stream stream);
void grouped_backward_input(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                            const void* dy, const void* w, void* dx, void* workspace, Stream stream);
void grouped_backward_weight(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* dy, const void* x, void* dw, void* dbias, void* workspace, Stream stream);

// --- The launchers of single kernels; those above choose among them by config.kernel. ---

void depthwise_forward_general(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                               const void* bias, void* y, Stream stream);
void depthwise_forward_nhwc(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                            const void* bias, void* y, Stream stream);
void depthwise_forward_nchw(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                            const void* bias, void* y, Stream stream);

void depthwise_backward_input_general(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                      const void* w, void* dx, Stream stream);
void depthwise_backward_input_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                                   void* dx, Stream stream);
void depthwise_backward_input_nchw(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                                   void* dx, Stream stream);

void depthwise_backward_weight_general(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                       const void* x, void* dw, void* dbias, void* workspace, Stream stream);
void depthwise_backward_weight_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                                    void* dw, void* dbias, void* workspace, Stream stream);
void depthwise_backward_weight_nchw(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                                    void* dw, void* dbias, void* workspace, Stream stream);

/// The second stage of depthwise_backward_weight: adds the `parts` partial results in workspace[part][R*S + 1][K], the
/// sums of dy last, in ascending order, and rounds once.
void depthwise_backward_weight_reduce(const ConvParams& params, int parts, const void* workspace, void* dw, void* dbias,
                                      Stream stream);

/// Sizes of a tensor, and its strides. to_channels_last and from_channels_last take it in NCHW, its stride of w 1.
struct Activations {
  int64_t N, C, H, W;
  Strides4 strides;
};

/// Copies between NCHW and a dense channels_last tensor. C is a multiple of a 16-byte vector.
void to_channels_last(DType dtype, const Activations& planes, const void* from, void* packed, Stream stream);
void from_channels_last(DType dtype, const Activations& planes, const void* packed, void* to, Stream stream);

/// packed[n][h][w][padded_channels] = x, zeros after the last channel; any strides. And the way back.
void pad_channels(DType dtype, const Activations& x, int padded_channels, const void* from, void* packed,
                  Stream stream);
void unpad_channels(DType dtype, const Activations& x, int padded_channels, const void* packed, void* to,
                    Stream stream);

/// packed[K][R][S][padded_channels] = w, zeros after the last of its C / groups channels.
void grouped_pack_filter(const ConvParams& params, bool filter_channels_last, int padded_channels, const void* w,
                         void* packed, Stream stream);

// These take any problem, and the filter in either order.
void grouped_forward_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* x, const void* w, const void* bias, void* y, Stream stream);
void grouped_backward_input_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                    const void* dy, const void* w, void* dx, Stream stream);
void grouped_backward_weight_general(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                                     const void* dy, const void* x, void* dw, void* dbias, Stream stream);

// These take the filter as [K][R][S][C / groups].
// If config.parts > 0 they leave the sums of each part, in float32 and dense, in `sums`, and nothing in y or dx.
void grouped_forward_nhwc(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                          const void* bias, void* y, float* sums, Stream stream);
void grouped_backward_input_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* w,
                                 void* dx, float* sums, Stream stream);

/// The second stage of these two: adds the parts in ascending order, then bias (or null) and activation, and rounds
/// once. In memory the channels are `channels`, a multiple of a 16-byte vector and at least y.C.
void grouped_reduce_parts(DType dtype, const Activations& y, int channels, int parts, const float* sums,
                          const void* bias, Activation activation, void* output, Stream stream);

// The same on sm_90a, 16-bit.
void grouped_forward_wgmma_nhwc(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                                const void* bias, void* y, Stream stream);
void grouped_backward_input_wgmma_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                       const void* w, void* dx, Stream stream);

// 4, 8, 16 or 32 channels of a group on both sides, 16-bit.
void grouped_forward_narrow_nhwc(const ConvParams& params, const LaunchConfig& config, const void* x, const void* w,
                                 const void* bias, void* y, Stream stream);
void grouped_backward_input_narrow_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                        const void* w, void* dx, Stream stream);
void grouped_backward_weight_narrow_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy,
                                         const void* x, bool with_bias, float* workspace, Stream stream);

/// Leaves sums in the workspace: [parts][groups][R * S][K / groups][C / groups], then [parts][K] of dy if `with_bias`.
void grouped_backward_weight_nhwc(const ConvParams& params, const LaunchConfig& config, const void* dy, const void* x,
                                  bool with_bias, float* workspace, Stream stream);

/// The second stage: adds the parts in ascending order and rounds once. The sums have `channels` channels of a group,
/// of which dw takes the first C / groups. `dbias` may be null.
void grouped_backward_weight_reduce(const ConvParams& params, int parts, int channels, bool filter_channels_last,
                                    const float* workspace, void* dw, void* dbias, Stream stream);

}  // namespace cnnext::cuda
