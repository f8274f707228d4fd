// Calls the kernels that a configuration names, and before and after them those that bring operands into the order that
// they want, by way of the workspace.
#include "kernels.h"

namespace cnnext::cuda {
namespace {

/// One call's operands as a channels_last kernel takes them.
class Operands {
 public:
  Operands(const ConvParams& params, const LaunchConfig& config, void* memory, Stream stream)
      : original_(params),
        config_(config),
        memory_(static_cast<unsigned char*>(memory)),
        stream_(stream),
        at_(grouped_workspace(params, config)),
        params_(params) {
    params_.layout = Layout::kNHWC;
    if (config.padded_channels > 0) params_.C = config.padded_channels;
    if (copies_x()) params_.x_strides = {params.H * params.W * params_.C, 1, params.W * params_.C, params_.C};
    const int64_t outputs = channels_in_memory(params.K, config.padded_outputs);
    if (copies_y()) params_.y_strides = {params.P * params.Q * outputs, 1, params.Q * outputs, outputs};
  }

  /// The problem that the kernel sees.
  const ConvParams& params() const { return params_; }
  int channels() const { return static_cast<int>(params_.channels_per_group()); }

  /// What the kernel reads, brought there by a launch if need be.
  const void* read_x(const void* x) const {
    if (!copies_x()) return x;
    if (config_.padded_channels > 0) {
      pad_channels(original_.dtype, x_planes(), config_.padded_channels, x, memory_ + at_.x, stream_);
    } else {
      to_channels_last(original_.dtype, x_planes(), x, memory_ + at_.x, stream_);
    }
    return memory_ + at_.x;
  }
  const void* read_y(const void* y) const {
    if (!copies_y()) return y;
    if (config_.padded_outputs > 0) {
      pad_channels(original_.dtype, y_planes(), config_.padded_outputs, y, memory_ + at_.y, stream_);
    } else {
      to_channels_last(original_.dtype, y_planes(), y, memory_ + at_.y, stream_);
    }
    return memory_ + at_.y;
  }
  const void* read_filter(const void* w, bool filter_channels_last) const {
    if (!config_.packs_filter) return w;
    grouped_pack_filter(original_, filter_channels_last, channels(), w, memory_ + at_.filter, stream_);
    return memory_ + at_.filter;
  }

  /// Where the kernel writes what belongs at x or y; `finish` brings it there.
  void* write_x(void* x) const { return copies_x() ? memory_ + at_.x : x; }
  void* write_y(void* y) const { return copies_y() ? memory_ + at_.y : y; }
  float* sums() const { return reinterpret_cast<float*>(memory_ + at_.sums); }
  /// If the kernel left partial sums, these come first.
  void finish_x(void* x) const {
    if (config_.parts > 0) {
      const Activations dx{params_.N, params_.C, params_.H, params_.W, params_.x_strides};
      grouped_reduce_parts(params_.dtype, dx, static_cast<int>(params_.C), config_.parts, sums(), nullptr,
                           Activation::kNone, write_x(x), stream_);
    }
    if (config_.padded_channels > 0) {
      unpad_channels(original_.dtype, x_planes(), config_.padded_channels, memory_ + at_.x, x, stream_);
    } else if (config_.converts) {
      from_channels_last(original_.dtype, x_planes(), memory_ + at_.x, x, stream_);
    }
  }
  void finish_y(void* y, const void* bias) const {
    if (config_.parts > 0) {
      const Activations packed{params_.N, params_.K, params_.P, params_.Q, params_.y_strides};
      grouped_reduce_parts(params_.dtype, packed,
                           static_cast<int>(channels_in_memory(params_.K, config_.padded_outputs)), config_.parts,
                           sums(), bias, params_.activation, write_y(y), stream_);
    }
    if (config_.padded_outputs > 0) {
      unpad_channels(original_.dtype, y_planes(), config_.padded_outputs, memory_ + at_.y, y, stream_);
    } else if (config_.converts) {
      from_channels_last(original_.dtype, y_planes(), memory_ + at_.y, y, stream_);
    }
  }

 private:
  bool copies_x() const { return config_.converts || config_.padded_channels > 0; }
  bool copies_y() const { return config_.converts || config_.padded_outputs > 0; }
  Activations x_planes() const { return {original_.N, original_.C, original_.H, original_.W, original_.x_strides}; }
  Activations y_planes() const { return {original_.N, original_.K, original_.P, original_.Q, original_.y_strides}; }

  const ConvParams& original_;
  const LaunchConfig& config_;
  unsigned char* memory_;
  Stream stream_;
  GroupedWorkspace at_;
  ConvParams params_;
};

}  // namespace

void grouped_forward(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last, const void* x,
                     const void* w, const void* bias, void* y, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedForwardGeneral) {
    return grouped_forward_general(params, config, filter_channels_last, x, w, bias, y, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const void* source = operands.read_x(x);
  const void* filter = operands.read_filter(w, filter_channels_last);
  void* const output = operands.write_y(y);
  if (config.kernel == Kernel::kGroupedForwardNarrowNhwc) {
    grouped_forward_narrow_nhwc(operands.params(), config, source, filter, bias, output, stream);
  } else if (config.kernel == Kernel::kGroupedForwardWgmmaNhwc) {
    grouped_forward_wgmma_nhwc(operands.params(), config, source, filter, bias, output, stream);
  } else {
    grouped_forward_nhwc(operands.params(), config, source, filter, bias, output, operands.sums(), stream);
  }
  operands.finish_y(y, bias);
}

void grouped_backward_input(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                            const void* dy, const void* w, void* dx, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardInputGeneral) {
    return grouped_backward_input_general(params, config, filter_channels_last, dy, w, dx, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const void* source = operands.read_y(dy);
  const void* filter = operands.read_filter(w, filter_channels_last);
  void* const output = operands.write_x(dx);
  if (config.kernel == Kernel::kGroupedBackwardInputNarrowNhwc) {
    grouped_backward_input_narrow_nhwc(operands.params(), config, source, filter, output, stream);
  } else if (config.kernel == Kernel::kGroupedBackwardInputWgmmaNhwc) {
    grouped_backward_input_wgmma_nhwc(operands.params(), config, source, filter, output, stream);
  } else {
    grouped_backward_input_nhwc(operands.params(), config, source, filter, output, operands.sums(), stream);
  }
  operands.finish_x(dx);
}

void grouped_backward_weight(const ConvParams& params, const LaunchConfig& config, bool filter_channels_last,
                             const void* dy, const void* x, void* dw, void* dbias, void* workspace, Stream stream) {
  if (config.kernel == Kernel::kGroupedBackwardWeightGeneral) {
    return grouped_backward_weight_general(params, config, filter_channels_last, dy, x, dw, dbias, stream);
  }
  const Operands operands(params, config, workspace, stream);
  const auto kernel = config.kernel == Kernel::kGroupedBackwardWeightNarrowNhwc ? grouped_backward_weight_narrow_nhwc
                                                                                : grouped_backward_weight_nhwc;
  kernel(operands.params(), config, operands.read_y(dy), operands.read_x(x), dbias != nullptr, operands.sums(), stream);
  grouped_backward_weight_reduce(params, config.parts, operands.channels(), filter_channels_last, operands.sums(), dw,
                                 dbias, stream);
}

}  // namespace cnnext::cuda
