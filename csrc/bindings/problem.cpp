#include "problem.h"

#include "output_pool.h"

namespace cnnext::bindings {
namespace {

using torch::headeronly::ScalarType;

std::string list_to_string(const IntList& list) {
  std::string text = "[";
  for (size_t i = 0; i < list.size(); ++i) text += (i ? ", " : "") + std::to_string(list[i]);
  return text + "]";
}

Pair make_pair(const IntList& list, const char* name) {
  STD_TORCH_CHECK(list.size() == 1 || list.size() == 2, "expected ", name,
                  " to be a single integer value or a list of 2 values to match the convolution dimensions, but got ",
                  name, "=", list_to_string(list));
  return {list.front(), list.back()};
}

const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float";
    case ScalarType::Double: return "double";
    case ScalarType::Half: return "c10::Half";
    case ScalarType::BFloat16: return "c10::BFloat16";
    default: return torch::headeronly::toString(type);
  }
}

int64_t output_size(int64_t size, int64_t filter, int64_t stride, int64_t padding, int64_t dilation) {
  return (size + 2 * padding - dilation * (filter - 1) - 1) / stride + 1;
}

Dims4 dense_strides(const Dims4& sizes, Layout layout) {
  const auto [n, c, h, w] = sizes;
  (void)n;
  if (layout == Layout::kNHWC) return {h * w * c, 1, w * c, c};
  return {c * h * w, h * w, w, 1};
}

int64_t bytes_of_element(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

/// A CPU tensor in a block of the pool; none if it is too small for the pool, or the pool has no block.
std::optional<Tensor> empty_from_pool(const Dims4& sizes, const Dims4& strides, const Tensor& like) {
  const auto [n, c, h, w] = sizes;
  const auto bytes = static_cast<size_t>(n * c * h * w * bytes_of_element(dtype_of(like)));
  if (bytes < OutputPool::kMinBytes) return std::nullopt;
  void* data = OutputPool::instance().allocate(bytes);
  if (data == nullptr) return std::nullopt;
  return torch::stable::from_blob(
      data, sizes, strides, like.device(), like.scalar_type(),
      +[](void* block) { OutputPool::instance().release(block); });
}

Tensor as_filter(const Tensor& weight, FilterOrder order) {
  return order == FilterOrder::kAny && is_channels_last_only(weight) ? weight : as_contiguous(weight);
}

}  // namespace

std::string to_string(const Dims4& dims) { return list_to_string(IntList(dims.begin(), dims.end())); }

Dims4 sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes[0], sizes[1], sizes[2], sizes[3]};
}

Dims4 strides_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {strides[0], strides[1], strides[2], strides[3]};
}

Geometry check_geometry(const Geometry& geometry) {
  const auto& [stride, padding, dilation] = geometry;
  STD_TORCH_CHECK(padding.h >= 0 && padding.w >= 0, "negative padding is not supported");
  STD_TORCH_CHECK(stride.h > 0 && stride.w > 0, "non-positive stride is not supported");
  STD_TORCH_CHECK(dilation.h > 0 && dilation.w > 0, "dilation should be greater than zero, but got ",
                  list_to_string({dilation.h, dilation.w}));
  return geometry;
}

Geometry make_geometry(const IntList& stride, const IntList& padding, const IntList& dilation) {
  return check_geometry({make_pair(stride, "stride"), make_pair(padding, "padding"), make_pair(dilation, "dilation")});
}

Layout suggested_layout(const Dims4& sizes, const Dims4& strides) {
  // Walks c, w, h, n from the innermost: each stride must be at least what the dimensions inside it span.
  int64_t span = 0;
  if (strides[1] == 0) return Layout::kNCHW;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] == 0 || strides[d] < span) return Layout::kNCHW;
    // NOTE: N x 1 x 1 x 1 fits both layouts; torch calls it contiguous.
    if (d == 0 && span == strides[1]) return Layout::kNCHW;
    span = strides[d];
    if (sizes[d] > 1) span *= sizes[d];
  }
  return Layout::kNHWC;
}

Layout output_layout(const Tensor& input, const Tensor& weight) {
  const bool channels_last = suggested_layout(sizes_of(input), strides_of(input)) == Layout::kNHWC ||
                             suggested_layout(sizes_of(weight), strides_of(weight)) == Layout::kNHWC;
  return channels_last ? Layout::kNHWC : Layout::kNCHW;
}

ConvParams make_params(Family family, const Dims4& input, const Dims4& weight, const Geometry& geometry,
                       int64_t groups) {
  const auto [N, C, H, W] = input;
  const auto [K, channels_per_group, R, S] = weight;
  if (groups == kDepthwiseGroups) {
    STD_TORCH_CHECK(channels_per_group == 1, "depthwise_conv2d expects a weight of size [K, 1, R, S], but got ",
                    to_string(weight));
    groups = C;
  }
  STD_TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  STD_TORCH_CHECK(K >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
                  " at dimension 0, but got weight of size ", to_string(weight), " instead");
  STD_TORCH_CHECK(K % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
                  " at dimension 0, but got weight of size [", to_string(weight), "] instead");
  STD_TORCH_CHECK(C == channels_per_group * groups, "Given groups=", groups, ", weight of size ", to_string(weight),
                  ", expected input", to_string(input), " to have ", channels_per_group * groups, " channels, but got ",
                  C, " channels instead");
  STD_TORCH_CHECK(R > 0 && S > 0, "kernel size should be greater than zero, but got kernel_height: ", R,
                  " kernel_width: ", S);
  STD_TORCH_CHECK(family != Family::kPointwise || (R == 1 && S == 1),
                  "pointwise_conv2d expects a weight of size [K, C, 1, 1], but got ", to_string(weight));
  const int64_t padded_h = H + 2 * geometry.padding.h, padded_w = W + 2 * geometry.padding.w;
  const int64_t span_h = geometry.dilation.h * (R - 1) + 1, span_w = geometry.dilation.w * (S - 1) + 1;
  STD_TORCH_CHECK(padded_h >= span_h && padded_w >= span_w, "Calculated padded input size per channel: (", padded_h,
                  " x ", padded_w, "). Kernel size: (", span_h, " x ", span_w,
                  "). Kernel size can't be greater than actual input size");
  STD_TORCH_CHECK(C > 0 && H > 0 && W > 0,
                  "Only zero batch or zero channel inputs are supported, but got input shape: ", to_string(input));
  ConvParams params{};
  params.N = N, params.C = C, params.H = H, params.W = W;
  params.K = K, params.R = R, params.S = S;
  params.P = output_size(H, R, geometry.stride.h, geometry.padding.h, geometry.dilation.h);
  params.Q = output_size(W, S, geometry.stride.w, geometry.padding.w, geometry.dilation.w);
  params.groups = groups;
  params.stride_h = geometry.stride.h, params.stride_w = geometry.stride.w;
  params.pad_h = geometry.padding.h, params.pad_w = geometry.padding.w;
  params.dilation_h = geometry.dilation.h, params.dilation_w = geometry.dilation.w;
  return params;
}

Dims4 make_dims(const IntList& list, const char* what) {
  STD_TORCH_CHECK(list.size() == 4, "expected ", what, " to have 4 values, but got ", list.size());
  return {list[0], list[1], list[2], list[3]};
}

void check_4d(const Tensor& tensor, const char* what) {
  STD_TORCH_CHECK(tensor.dim() == 4, "Expected a 4-dimensional ", what, ", but got one of ", tensor.dim(),
                  " dimensions");
}

void check_like(const Tensor& tensor, const char* what, const Tensor& reference) {
  STD_TORCH_CHECK(tensor.is_cuda() == reference.is_cuda() && tensor.is_cpu() == reference.is_cpu() &&
                      tensor.get_device_index() == reference.get_device_index(),
                  "Expected all tensors to be on the same device, but ", what, " is on another");
  STD_TORCH_CHECK(tensor.scalar_type() == reference.scalar_type(), "Expected all tensors to have the same dtype, but ",
                  what, " has ", dtype_name(tensor.scalar_type()), " instead of ", dtype_name(reference.scalar_type()));
}

void check_residual(const Tensor& residual, const Tensor& output) {
  check_4d(residual, "residual");
  check_like(residual, "residual", output);
  STD_TORCH_CHECK(sizes_of(residual) == sizes_of(output), "expected residual of size ", to_string(sizes_of(output)),
                  ", but got ", to_string(sizes_of(residual)));
}

void check_grad_output(const Tensor& grad_output, const ConvParams& params) {
  check_4d(grad_output, "grad_output");
  const Dims4 expected{params.N, params.K, params.P, params.Q};
  STD_TORCH_CHECK(sizes_of(grad_output) == expected, "expected grad_output of size ", to_string(expected), ", but got ",
                  to_string(sizes_of(grad_output)));
}

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "cnnext's kernels take float32, float64, float16 and bfloat16, but got ",
                      dtype_name(tensor.scalar_type()));
  }
  return DType::kFloat32;
}

Tensor empty_dense(const Dims4& sizes, Layout layout, const Tensor& like) {
  const Dims4 strides = dense_strides(sizes, layout);
  if (like.is_cpu()) {
    if (std::optional<Tensor> pooled = empty_from_pool(sizes, strides, like)) return *pooled;
  }
  int32_t dtype = 0, device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(4, sizes.data(), strides.data(), dtype, device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

Tensor empty_1d(int64_t size, const Tensor& like) { return torch::stable::new_empty(like, {size}); }

Tensor with_unit_stride(const Tensor& tensor, Layout layout) {
  const int unit_dim = layout == Layout::kNHWC ? 1 : 3;
  if (tensor.stride(unit_dim) == 1 || tensor.size(unit_dim) == 1) return tensor;
  Tensor copy = empty_dense(sizes_of(tensor), layout, tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

bool is_channels_last_only(const Tensor& filter) {
  return !filter.is_contiguous() && strides_of(filter) == dense_strides(sizes_of(filter), Layout::kNHWC);
}

Strides4 kernel_strides(const Tensor& tensor, Layout layout) {
  const Dims4 strides = strides_of(tensor);
  Strides4 result{strides[0], strides[1], strides[2], strides[3]};
  (layout == Layout::kNHWC ? result.c : result.w) = 1;
  return result;
}

ConvParams make_forward_params(Family family, const Tensor& input, const Dims4& input_dims, const Tensor& weight,
                               const Geometry& geometry, int64_t groups, int64_t activation) {
  check_4d(weight, "weight");
  check_like(weight, "weight", input);
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::kHardswish),
                  "activation should be between 0 and ", static_cast<int64_t>(Activation::kHardswish), ", but got ",
                  activation);
  ConvParams params = make_params(family, input_dims, sizes_of(weight), geometry, groups);
  params.dtype = dtype_of(input);
  params.activation = static_cast<Activation>(activation);
  return params;
}

std::optional<Tensor> make_bias(const std::optional<Tensor>& bias, int64_t K, const Tensor& input) {
  if (!bias.has_value()) return std::nullopt;
  check_like(*bias, "bias", input);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == K, "expected bias to be 1-dimensional with ", K,
                  " elements, but got bias of ", bias->dim(), " dimensions and ", bias->numel(), " elements");
  return as_contiguous(*bias);
}

ForwardCall prepare_forward(Family family, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                            const Geometry& geometry, int64_t groups, int64_t activation, FilterOrder order) {
  check_4d(input, "input");
  ConvParams params = make_forward_params(family, input, sizes_of(input), weight, geometry, groups, activation);
  params.layout = output_layout(input, weight);
  ForwardCall call{params, with_unit_stride(input, params.layout), as_filter(weight, order),
                   make_bias(bias, params.K, input),
                   empty_dense({params.N, params.K, params.P, params.Q}, params.layout, input)};
  call.params.x_strides = kernel_strides(call.x, params.layout);
  call.params.y_strides = kernel_strides(call.output, params.layout);
  return call;
}

BackwardInputCall prepare_backward_input(Family family, const Tensor& grad_output, const Tensor& weight,
                                         const IntList& input_size, const Geometry& geometry, int64_t groups,
                                         bool channels_last, FilterOrder order) {
  check_4d(weight, "weight");
  check_like(weight, "weight", grad_output);
  const Dims4 input_dims = make_dims(input_size, "input_size");
  ConvParams params = make_params(family, input_dims, sizes_of(weight), geometry, groups);
  check_grad_output(grad_output, params);
  params.dtype = dtype_of(grad_output);
  params.layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  BackwardInputCall call{params, with_unit_stride(grad_output, params.layout), as_filter(weight, order),
                         empty_dense(input_dims, params.layout, grad_output)};
  call.params.x_strides = kernel_strides(call.grad_input, params.layout);
  call.params.y_strides = kernel_strides(call.dy, params.layout);
  return call;
}

BackwardWeightCall prepare_backward_weight(Family family, const Tensor& grad_output, const Tensor& input,
                                           const IntList& weight_size, const Geometry& geometry, int64_t groups,
                                           bool with_bias, bool channels_last, FilterOrder order) {
  check_4d(input, "input");
  check_like(input, "input", grad_output);
  const Dims4 weight_dims = make_dims(weight_size, "weight_size");
  ConvParams params = make_params(family, sizes_of(input), weight_dims, geometry, groups);
  check_grad_output(grad_output, params);
  params.dtype = dtype_of(input);
  params.layout = suggested_layout(sizes_of(input), strides_of(input));
  // With one channel a group, or one tap, a contiguous filter is channels_last as well.
  const bool reorder =
      channels_last && order == FilterOrder::kContiguous && weight_dims[1] > 1 && params.R * params.S > 1;
  const Layout written_layout = channels_last && !reorder ? Layout::kNHWC : Layout::kNCHW;
  BackwardWeightCall call{params,
                          with_unit_stride(grad_output, params.layout),
                          with_unit_stride(input, params.layout),
                          empty_dense(weight_dims, written_layout, input),
                          empty_1d(with_bias ? params.K : 0, input),
                          reorder};
  if (params.N == 0) {
    torch::stable::zero_(call.grad_weight);
    torch::stable::zero_(call.grad_bias);
  }
  call.params.x_strides = kernel_strides(call.x, params.layout);
  call.params.y_strides = kernel_strides(call.dy, params.layout);
  return call;
}

std::tuple<Tensor, Tensor> finish_backward_weight(const BackwardWeightCall& call) {
  if (!call.reorder) return {call.grad_weight, call.grad_bias};
  Tensor reordered = empty_dense(sizes_of(call.grad_weight), Layout::kNHWC, call.grad_weight);
  torch::stable::copy_(reordered, call.grad_weight);
  return {reordered, call.grad_bias};
}

}  // namespace cnnext::bindings
