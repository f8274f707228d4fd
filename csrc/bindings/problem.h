// From tensors to a checked ConvParams. Shared by the CPU and the CUDA binding; uses the LibTorch stable ABI only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../conv_params.h"

namespace cnnext::bindings {

using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

/// The kinds of convolution behind the operators. They share every check but that on the groups.
enum class Family { kDepthwise, kGrouped, kPointwise };

/// A (height, width) argument of an operator.
struct Pair {
  int64_t h, w;
};

struct Geometry {
  Pair stride, padding, dilation;
};

/// Sizes or strides of a 4-d tensor.
using Dims4 = std::array<int64_t, 4>;

std::string to_string(const Dims4& dims);

Dims4 sizes_of(const Tensor& tensor);
Dims4 strides_of(const Tensor& tensor);

/// Checks the signs, with the words of F.conv2d.
Geometry check_geometry(const Geometry& geometry);

/// The same of lists, whose lengths are checked too.
Geometry make_geometry(const IntList& stride, const IntList& padding, const IntList& dilation);

/// Layout that `tensor`'s strides suggest, by the rule of at::Tensor::suggest_memory_format.
Layout suggested_layout(const Dims4& sizes, const Dims4& strides);

/// Layout of the result: channels_last if either the input or the weight is, as F.conv2d decides.
Layout output_layout(const Tensor& input, const Tensor& weight);

/// Passed for `groups` where the family decides: as many groups as channels.
constexpr int64_t kDepthwiseGroups = -1;

/// Params of the problem without strides, layout and dtype. Throws what F.conv2d throws for the same sizes.
ConvParams make_params(Family family, const Dims4& input, const Dims4& weight, const Geometry& geometry,
                       int64_t groups);

/// An operator's list of 4 sizes.
Dims4 make_dims(const IntList& list, const char* what);

/// Number of dimensions must be 4; `what` names the tensor in the error.
void check_4d(const Tensor& tensor, const char* what);

/// A residual must be as large as the output it is added to.
void check_residual(const Tensor& residual, const Tensor& output);

/// `tensor` must have the device and the dtype of `reference`.
void check_like(const Tensor& tensor, const char* what, const Tensor& reference);

/// `grad_output` must be N x K x P x Q.
void check_grad_output(const Tensor& grad_output, const ConvParams& params);

/// The kernels' name for the tensor's dtype; throws for those they do not have.
DType dtype_of(const Tensor& tensor);

/// Uninitialised, dense in `layout`, with the dtype and device of `like`. Large ones on the CPU come from OutputPool.
Tensor empty_dense(const Dims4& sizes, Layout layout, const Tensor& like);
Tensor empty_1d(int64_t size, const Tensor& like);

/// `tensor` itself if the dimension that `layout` names has stride 1, else a dense copy in that layout.
Tensor with_unit_stride(const Tensor& tensor, Layout layout);

/// `tensor` itself if it is contiguous, else a contiguous copy.
Tensor as_contiguous(const Tensor& tensor);

/// How a kernel takes its filter: [K][C / groups][R][S] only, or [K][R][S][C / groups] too, if it lies like that.
enum class FilterOrder { kContiguous, kAny };

/// Whether `filter` lies as [K][R][S][C / groups], and not also as [K][C / groups][R][S].
bool is_channels_last_only(const Tensor& filter);

/// Strides for the kernels. A dimension of size 1 gets stride 1 where the layout asks for it.
Strides4 kernel_strides(const Tensor& tensor, Layout layout);

/// The params of a forward convolution of `input_dims`, with the dtype of `input`, after checks of the filter and the
/// activation; without strides and layout.
ConvParams make_forward_params(Family family, const Tensor& input, const Dims4& input_dims, const Tensor& weight,
                               const Geometry& geometry, int64_t groups, int64_t activation);

/// A bias of K elements as the kernels take it.
std::optional<Tensor> make_bias(const std::optional<Tensor>& bias, int64_t K, const Tensor& input);

/// Everything that a forward kernel is called with.
struct ForwardCall {
  ConvParams params;
  Tensor x, w;
  std::optional<Tensor> bias;
  Tensor output;
};

/// Checks the arguments of a forward operator and allocates its output. With an empty batch there is nothing to
/// compute.
ForwardCall prepare_forward(Family family, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                            const Geometry& geometry, int64_t groups, int64_t activation,
                            FilterOrder order = FilterOrder::kContiguous);

/// Everything that a backward_input kernel is called with. The gradient has x_strides, dy has y_strides.
struct BackwardInputCall {
  ConvParams params;
  Tensor dy, w;
  Tensor grad_input;
};

/// Checks the arguments of a backward_input operator and allocates its result, in the layout that `channels_last`
/// names.
BackwardInputCall prepare_backward_input(Family family, const Tensor& grad_output, const Tensor& weight,
                                         const IntList& input_size, const Geometry& geometry, int64_t groups,
                                         bool channels_last, FilterOrder order = FilterOrder::kContiguous);

/// Everything that a backward_weight kernel is called with. It writes a contiguous filter, or one that lies as
/// grad_weight does if it takes any order.
struct BackwardWeightCall {
  ConvParams params;
  Tensor dy, x;
  Tensor grad_weight, grad_bias;  // grad_bias has no elements if it is not asked for
  bool reorder;                   // the result's layout is not the one that the kernel writes
};

/// Checks the arguments of a backward_weight operator and allocates its results; zeros if there is nothing to add up.
BackwardWeightCall prepare_backward_weight(Family family, const Tensor& grad_output, const Tensor& input,
                                           const IntList& weight_size, const Geometry& geometry, int64_t groups,
                                           bool with_bias, bool channels_last,
                                           FilterOrder order = FilterOrder::kContiguous);

/// The results of a backward_weight operator, once the kernel has been called.
std::tuple<Tensor, Tensor> finish_backward_weight(const BackwardWeightCall& call);

}  // namespace cnnext::bindings
