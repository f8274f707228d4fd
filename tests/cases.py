"""The convolution problems that the tests try, by name, and the tensors they are tried on.

Sizes sit on the edges where kernels break: 1, primes, 7, 14, 28, one less and one more than a vector of 4, 8 or 16
elements, channel counts that no vector divides, filters larger than the image, padding wider than the filter. Every
tensor is seeded by the name of its case.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import cnnext


@dataclass(frozen=True)
class Case:
    """One convolution problem: input (N, C, H, W), filter (K, C // groups, R, S)."""

    name: str
    n: int
    c: int
    h: int
    w: int
    k: int
    r: int = 3
    s: int = 3
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        return self.name

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.c // self.groups, self.r, self.s

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        def length(size: int, taps: int, axis: int) -> int:
            return (size + 2 * self.padding[axis] - self.dilation[axis] * (taps - 1) - 1) // self.stride[axis] + 1

        return self.n, self.k, length(self.h, self.r, 0), length(self.w, self.s, 1)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def case(
    name: str,
    size: tuple[int, int, int, int],
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Case:
    r, s = _pair(kernel)
    return Case(name, *size, outputs, r, s, _pair(stride), _pair(padding), _pair(dilation), groups)


def _depthwise(
    name: str, size: tuple[int, int, int, int], kernel: int | tuple[int, int], multiplier: int = 1, **geometry: object
) -> Case:
    return case(name, size, size[1] * multiplier, kernel, groups=size[1], **geometry)  # type: ignore[arg-type]


DEPTHWISE_CASES = (
    _depthwise("one_pixel", (1, 1, 1, 1), 1),
    _depthwise("one_pixel_padded", (2, 3, 1, 1), 3, padding=1),
    _depthwise("mobilenet_7", (2, 33, 7, 7), 3, padding=1),
    _depthwise("mobilenet_14", (1, 16, 14, 14), 3, padding=1),
    _depthwise("mobilenet_14_s2", (2, 17, 14, 14), 3, stride=2, padding=1),
    _depthwise("mobilenet_28", (1, 9, 28, 28), 3, padding=1),
    _depthwise("mobilenet_28_s2", (1, 15, 28, 28), 3, stride=2, padding=1),
    _depthwise("odd_width_s2", (2, 5, 13, 15), 3, stride=2, padding=1),
    _depthwise("unpadded_3x3", (1, 8, 9, 17), 3),
    _depthwise("unpadded_3x3_s2", (1, 8, 9, 18), 3, stride=2),
    _depthwise("width_vector_minus_1", (1, 3, 4, 15), 3, padding=1),
    _depthwise("width_vector_plus_1", (1, 3, 5, 17), 3, padding=1),
    _depthwise("width_two_vectors_plus_1", (1, 2, 3, 33), 3, padding=1),
    _depthwise("width_four_vectors_plus_3_s2", (1, 3, 9, 67), 3, stride=2, padding=1),
    _depthwise("width_two_vectors_s2", (2, 3, 10, 32), 3, stride=2, padding=1),
    _depthwise("row_pairs_beyond_one_band", (1, 3, 61, 7), 3, padding=1),
    _depthwise("row_pairs_beyond_one_band_s2", (2, 3, 63, 15), 3, stride=2, padding=1),
    _depthwise("narrow_and_tall", (1, 4, 37, 2), 3, padding=1),
    _depthwise("flat_and_wide", (1, 4, 2, 67), 3, padding=1),
    _depthwise("row_wider_than_strip", (1, 2, 3, 131), 3, padding=1, stride=(1, 2)),
    _depthwise("channels_vector_minus_1", (1, 31, 5, 6), 3, padding=1),
    _depthwise("channels_vector_plus_1", (1, 65, 5, 4), 3, padding=1),
    _depthwise("prime_everything", (3, 7, 11, 13), (5, 3), padding=(2, 1)),
    _depthwise("filter_5x5", (2, 16, 11, 10), 5, padding=2),
    _depthwise("filter_5x5_s2", (1, 19, 14, 15), 5, stride=2, padding=2),
    _depthwise("filter_7x7", (1, 18, 14, 13), 7, padding=3),
    _depthwise("filter_11x11", (1, 3, 12, 12), 11, padding=5),
    _depthwise("filter_1x1", (2, 10, 5, 7), 1),
    _depthwise("filter_1x1_s2_padded", (1, 10, 5, 7), 1, stride=2, padding=1),
    _depthwise("even_filter_2x2", (2, 9, 8, 9), 2),
    _depthwise("even_filter_4x4_s2", (1, 12, 10, 10), 4, stride=2, padding=1),
    _depthwise("filter_1x5", (1, 8, 6, 9), (1, 5), padding=(0, 2)),
    _depthwise("filter_5x1", (1, 8, 9, 6), (5, 1), padding=(2, 0)),
    _depthwise("filter_2x3_uneven_padding", (1, 7, 6, 8), (2, 3), padding=(0, 2)),
    _depthwise("filter_larger_than_image", (1, 5, 3, 2), 5, padding=2),
    _depthwise("padding_beyond_filter", (1, 6, 4, 5), 3, padding=(4, 5)),
    _depthwise("padding_beyond_filter_s3", (1, 17, 4, 5), 2, padding=6, stride=3),
    _depthwise("stride_3", (1, 8, 13, 16), 3, stride=3, padding=1),
    _depthwise("stride_beyond_filter", (1, 8, 11, 12), 2, stride=(3, 4)),
    _depthwise("stride_skips_last_pixels", (1, 4, 8, 8), 3, stride=(3, 2)),
    _depthwise("stride_2x1", (1, 16, 9, 9), 3, stride=(2, 1), padding=1),
    _depthwise("dilation_2", (1, 16, 12, 11), 3, padding=2, dilation=2),
    _depthwise("dilation_1x2", (1, 8, 11, 12), 3, padding=(1, 2), dilation=(1, 2)),
    _depthwise("dilation_1x2_s2", (1, 8, 11, 12), 3, stride=2, padding=1, dilation=(1, 2)),
    _depthwise("dilation_2x1", (1, 8, 11, 12), 3, padding=(2, 1), dilation=(2, 1)),
    _depthwise("dilation_3x2_s2", (1, 9, 14, 13), 3, stride=2, padding=(3, 1), dilation=(3, 2)),
    _depthwise("dilation_even_filter", (1, 5, 9, 9), 2, padding=1, dilation=(1, 4)),
    _depthwise("multiplier_2", (2, 8, 7, 9), 3, multiplier=2, padding=1),
    _depthwise("multiplier_3_s2", (1, 5, 9, 8), 3, multiplier=3, stride=2, padding=1),
    _depthwise("multiplier_of_one_channel", (2, 1, 6, 7), 3, multiplier=17, padding=1),
    _depthwise("multiplier_4_filter_5x5", (1, 3, 8, 8), 5, multiplier=4, padding=2, dilation=(1, 2)),
    _depthwise("batch_5", (5, 4, 6, 6), 3, padding=1),
    _depthwise("channels_beyond_one_block", (1, 131, 5, 6), 3, padding=1),
    _depthwise("rows_beyond_one_band", (1, 3, 61, 9), 3, padding=1),
    _depthwise("rows_beyond_one_band_s2", (1, 3, 67, 5), 3, stride=2, padding=1),
    _depthwise("pixels_beyond_one_part", (1, 16, 51, 40), 3, padding=1),
    _depthwise("pixels_beyond_one_part_5x5", (2, 17, 25, 24), 5, padding=2),
)

# Sizes on the edges of the CUDA kernels' tiles, vectors and grids.
DEPTHWISE_CUDA_CASES = (
    _depthwise("cuda_64_channels", (1, 64, 9, 17), 3, padding=1),
    _depthwise("cuda_64_channels_s2", (2, 64, 17, 10), 3, stride=2, padding=1),
    _depthwise("cuda_8_channels", (2, 8, 16, 16), 3, padding=1),
    _depthwise("cuda_72_channels_unpadded", (1, 72, 10, 7), 3),
    _depthwise("cuda_5x5", (1, 40, 15, 13), 5, padding=2),
    _depthwise("cuda_5x5_s2", (2, 24, 14, 14), 5, stride=2, padding=2),
    _depthwise("cuda_7x7", (1, 24, 14, 15), 7, padding=3),
    _depthwise("cuda_7x7_s2", (1, 16, 15, 14), 7, stride=2, padding=3),
    _depthwise("cuda_wide_row", (1, 8, 3, 113), 3, padding=1),
    _depthwise("cuda_wide_row_s2", (1, 8, 5, 112), 3, stride=2, padding=1),
    _depthwise("cuda_tall", (1, 16, 57, 3), 3, padding=1),
    _depthwise("cuda_7x7_planes", (3, 24, 7, 7), 3, padding=1),
    _depthwise("cuda_one_image_one_plane", (1, 1, 28, 28), 3, padding=1),
    _depthwise("cuda_padding_beyond_filter", (1, 16, 6, 7), 3, padding=(4, 3)),
    _depthwise("cuda_padding_uneven_s2", (1, 16, 9, 8), 3, stride=2, padding=(0, 2)),
    _depthwise("cuda_one_tap", (1, 16, 7, 12), 3, padding=1),
    _depthwise("cuda_image_of_one_row_s2", (1, 16, 1, 9), 3, stride=2, padding=1),
    _depthwise("cuda_channels_and_strips_beyond_one_block", (2, 132, 5, 37), 3, padding=1),
    _depthwise("cuda_images_beyond_one_block", (9, 64, 3, 4), 5, padding=2),
    _depthwise("cuda_dilated", (1, 16, 13, 11), 3, padding=2, dilation=(2, 3)),
    _depthwise("cuda_dilated_5x5", (1, 8, 12, 19), 5, padding=4, dilation=2),
    _depthwise("cuda_dilation_beyond_image", (1, 8, 4, 5), 3, padding=6, dilation=6),
    _depthwise("cuda_7x7_odd_channels", (1, 5, 9, 8), 7, padding=3),
    _depthwise("cuda_7x7_odd_channels_s2", (2, 3, 10, 9), 7, stride=2, padding=3),
    _depthwise("cuda_nchw_planes_7", (2, 130, 7, 7), 3, padding=1),
    _depthwise("cuda_nchw_planes_14", (1, 70, 14, 14), 3, padding=1),
    _depthwise("cuda_nchw_planes_14_s2", (1, 67, 14, 14), 5, stride=2, padding=2),
    _depthwise("cuda_nchw_patches_of_uneven_rows", (1, 9, 15, 16), 5, padding=2),
    _depthwise("cuda_nchw_bands", (1, 2, 75, 112), 3, padding=1),
    _depthwise("cuda_nchw_bands_s2", (1, 1, 131, 112), 3, stride=2, padding=1),
    _depthwise("cuda_nchw_bands_5x5", (1, 1, 57, 56), 5, padding=2),
    _depthwise("cuda_nchw_bands_7x7", (1, 1, 29, 63), 7, padding=3),
    _depthwise("cuda_nchw_7x7_s2", (1, 5, 30, 29), 7, stride=2, padding=3),
    _depthwise("cuda_nchw_row_beyond_one_patch_a_thread", (1, 1, 5, 1000), 3, padding=1),
    _depthwise("cuda_nchw_row_beyond_one_patch_a_thread_s2", (1, 1, 5, 1501), 3, stride=2, padding=1),
    _depthwise("cuda_nchw_unpadded_5x5", (1, 9, 30, 29), 5),
    _depthwise("cuda_nchw_padding_even_s2", (1, 9, 20, 23), 3, stride=2, padding=2),
    _depthwise("cuda_nchw_dilation_in_bands", (1, 1, 80, 40), 3, padding=2, dilation=2),
    _depthwise("cuda_nchw_dilation_in_bands_s2", (1, 1, 161, 80), 3, stride=2, padding=2, dilation=2),
    _depthwise("cuda_nchw_multiplier_across_blocks", (2, 20, 14, 14), 3, multiplier=3, padding=1),
    _depthwise("cuda_padding_odd_and_even_s2", (1, 8, 8, 11), 3, stride=2, padding=(1, 2)),
    _depthwise("cuda_padding_even_and_odd_s2", (1, 8, 7, 16), 3, stride=2, padding=(2, 1)),
)

GROUPED_CASES = (
    case("one_pixel", (1, 1, 1, 1), 1, 1),
    case("dense_stem", (2, 3, 17, 15), 8, 3, stride=2, padding=1),
    case("dense_stem_7x7", (1, 3, 20, 21), 5, 7, stride=2, padding=3),
    case("dense_3x3", (2, 16, 7, 7), 16, 3, padding=1),
    case("dense_3x3_s2", (1, 17, 14, 14), 33, 3, stride=2, padding=1),
    case("dense_one_output", (2, 8, 6, 9), 1, 3, padding=1),
    case("dense_one_input", (2, 1, 6, 9), 7, 3, padding=1),
    case("dense_primes", (3, 7, 11, 13), 5, (5, 3), padding=(2, 1)),
    case("dense_depth_beyond_one_block", (1, 67, 5, 6), 9, 3, padding=1),
    case("dense_deep_reduction", (1, 150, 5, 5), 4, 3, padding=1),
    case("dense_many_outputs", (1, 4, 5, 5), 70, 3, padding=1),
    case("dense_1x1_by_grouped", (2, 12, 5, 7), 10, 1),
    case("dense_even_filter", (1, 6, 8, 9), 4, 2),
    case("dense_4x4_s2", (1, 5, 10, 10), 6, 4, stride=2, padding=1),
    case("dense_filter_larger_than_image", (1, 3, 3, 2), 4, 5, padding=2),
    case("dense_padding_beyond_filter", (1, 3, 4, 5), 4, 3, padding=(4, 5)),
    case("dense_dilation", (1, 5, 12, 11), 6, 3, padding=2, dilation=2),
    case("dense_dilation_uneven", (2, 4, 11, 12), 5, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 3)),
    case("dense_stride_3", (1, 4, 13, 16), 6, 3, stride=3, padding=1),
    case("dense_stride_beyond_filter", (1, 4, 11, 12), 6, 2, stride=(3, 4)),
    case("dense_stride_skips_last_pixels", (1, 4, 8, 8), 3, 3, stride=(3, 2)),
    case("dense_row_beyond_one_tile", (1, 3, 3, 131), 4, 3, padding=1),
    case("two_groups", (2, 8, 9, 8), 6, 3, padding=1, groups=2),
    case("three_groups_s2", (1, 9, 11, 9), 15, 3, stride=2, padding=1, groups=3),
    case("resnext_group_of_4", (1, 32, 7, 7), 32, 3, padding=1, groups=8),
    case("groups_of_8", (1, 24, 7, 9), 24, 3, padding=1, groups=3),
    case("groups_of_16", (1, 32, 7, 7), 32, 3, stride=2, padding=1, groups=2),
    case("groups_of_17", (1, 34, 5, 7), 38, 3, padding=1, groups=2),
    case("groups_of_1_to_many", (1, 3, 6, 7), 51, 3, padding=1, groups=3),
    case("groups_of_many_to_1", (1, 33, 6, 7), 3, 3, padding=1, groups=3),
    case("depthwise_by_grouped", (2, 9, 8, 7), 9, 3, padding=1, groups=9),
    case("multiplier_by_grouped", (1, 6, 8, 7), 12, 3, stride=2, padding=1, groups=6),
    case("groups_1x1", (1, 12, 5, 5), 8, 1, groups=4),
    case("groups_1x1_s2", (2, 9, 6, 5), 6, 1, stride=2, groups=3),
    case("groups_of_1_of_one_plane", (1, 19, 12, 11), 19, 3, padding=1, groups=19),
    case("groups_of_2_dilated_s2", (2, 38, 11, 12), 38, 3, stride=2, padding=2, dilation=2, groups=19),
    case("groups_of_4_5x5", (1, 20, 9, 24), 20, 5, padding=2, groups=5),
    case("groups_of_8_s2", (1, 40, 13, 12), 40, 3, stride=2, padding=1, groups=5),
    case("groups_of_4_beyond_one_task", (1, 12, 27, 25), 12, 3, padding=1, groups=3),
    case("dense_one_output_pixel", (1, 9, 3, 3), 7, 3),
    case("dense_two_output_pixels", (1, 5, 3, 4), 6, 3),
    case("dense_pixels_beyond_one_block", (1, 3, 37, 34), 4, 3, padding=1),
    case("dense_pixels_beyond_one_part", (2, 17, 18, 17), 5, 3, padding=1),
    case("dense_many_accumulators", (1, 260, 4, 5), 26, 3, padding=1),
    case("groups_filter_1x5", (1, 8, 6, 9), 12, (1, 5), padding=(0, 2), groups=4),
)

# Sizes on the edges of the CUDA kernels' tiles, vectors and grids.
GROUPED_CUDA_CASES = (
    case("cuda_dense_16", (1, 16, 7, 9), 24, 3, padding=1),
    case("cuda_dense_72_to_136", (1, 72, 5, 7), 136, 3, padding=1),
    case("cuda_dense_s2", (2, 64, 9, 10), 64, 3, stride=2, padding=1),
    case("cuda_dense_s2_unpadded", (1, 40, 10, 9), 32, 3, stride=2),
    case("cuda_dense_5x5_dilated", (1, 16, 12, 13), 16, 5, padding=4, dilation=2),
    case("cuda_dense_s2_dilated", (1, 16, 11, 12), 16, 3, stride=2, padding=2, dilation=2),
    case("cuda_1x1_s2", (2, 24, 9, 8), 40, 1, stride=2),
    case("cuda_1x1_more_pixels_than_a_tile", (3, 64, 8, 9), 128, 1),
    case("cuda_groups_of_8", (1, 24, 7, 9), 24, 3, padding=1, groups=3),
    case("cuda_groups_of_16_s2", (1, 32, 9, 9), 32, 3, stride=2, padding=1, groups=2),
    case("cuda_groups_of_32", (1, 64, 6, 5), 64, 3, padding=1, groups=2),
    case("cuda_groups_8_to_16", (1, 16, 6, 7), 32, 3, padding=1, groups=2),
    case("cuda_uneven_stride", (1, 16, 9, 11), 16, 3, stride=(1, 2), padding=(0, 2)),
    case("cuda_many_parts", (4, 16, 24, 25), 16, 1),
    # Few outputs and a deep reduction, which is split: of the forward pass, and of the input gradient.
    case("cuda_split_forward", (1, 144, 3, 4), 40, 3, padding=1),
    case("cuda_split_input", (1, 24, 3, 4), 144, 3, padding=1),
    case("cuda_split_input_s2", (2, 16, 3, 5), 392, 3, stride=2, padding=1),
    case("cuda_split_odd_outputs", (2, 1300, 2, 3), 21, 1),
    case("cuda_split_odd_inputs", (2, 21, 2, 3), 1300, 1),
    case("cuda_split_two_groups", (1, 800, 2, 2), 16, (1, 3), padding=(0, 1), groups=2),
)

# For the kernels with wgmma: 64 channels of a group and more, tiles that hold the end of one image and the start of the
# next, or more pixels or channels than there are.
WGMMA_CASES = (
    case("wgmma_1x1", (1, 64, 8, 8), 64, 1),
    case("wgmma_1x1_tiles_of_two_images", (3, 128, 7, 9), 72, 1),
    case("wgmma_1x1_s2", (2, 64, 7, 6), 64, 1, stride=2),
    case("wgmma_3x3", (2, 64, 7, 10), 64, 3, padding=1),
    case("wgmma_3x3_s2", (1, 64, 9, 10), 72, 3, stride=2, padding=1),
    case("wgmma_3x3_s2_unpadded_width", (2, 64, 6, 9), 64, 3, stride=(1, 2), padding=(1, 0)),
    case("wgmma_3x3_dilated", (1, 64, 9, 8), 64, (3, 2), padding=(3, 1), dilation=(3, 2)),
    case("wgmma_3x3_s2_dilated", (1, 64, 9, 8), 64, 3, stride=2, padding=2, dilation=2),
    case("wgmma_ragged_channels", (1, 88, 5, 7), 264, (2, 1)),
    case("wgmma_groups", (1, 128, 5, 6), 256, (1, 3), padding=(0, 1), groups=2),
    case("wgmma_one_pixel", (1, 64, 1, 1), 64, 3, padding=1),
    case("wgmma_one_row", (1, 64, 1, 9), 64, 1, stride=2),  # a class of rows of the gradient is empty
)

# More blocks than an H100 has SMs, and many turns of the ring of slots.
LARGE_WGMMA_CASES = (
    case("wgmma_resnet_28", (16, 256, 28, 28), 256, 3, padding=1),
    case("wgmma_resnet_28_s2", (32, 256, 28, 28), 512, 3, stride=2, padding=1),
    case("wgmma_1x1_14", (64, 512, 14, 14), 1024, 1),
    case("wgmma_groups_of_128", (16, 512, 14, 14), 512, 3, padding=1, groups=4),
)

POINTWISE_CASES = (
    case("one_pixel", (1, 1, 1, 1), 1, 1),
    case("one_pixel_many_channels", (3, 40, 1, 1), 10, 1),
    case("mobilenet_7", (2, 33, 7, 7), 65, 1),
    case("mobilenet_14", (1, 32, 14, 14), 16, 1),
    case("primes", (3, 7, 11, 13), 5, 1),
    case("one_input_channel", (2, 1, 5, 6), 9, 1),
    case("one_output_channel", (2, 9, 5, 6), 1, 1),
    case("deep_reduction", (1, 530, 2, 3), 3, 1),
    case("vector_minus_1", (1, 15, 3, 5), 15, 1),
    case("vector_plus_1", (1, 17, 1, 17), 17, 1),
    case("stride_2", (2, 9, 9, 8), 12, 1, stride=2),
    case("stride_2_odd", (1, 8, 7, 7), 5, 1, stride=(2, 3)),
    case("padded", (1, 6, 4, 5), 7, 1, padding=(1, 2)),
    case("padded_and_strided", (2, 5, 6, 7), 4, 1, stride=2, padding=3),
    case("dilation_is_irrelevant", (1, 5, 6, 7), 4, 1, dilation=3),
    case("batch_5", (5, 8, 3, 3), 8, 1),
    case("few_pixels", (2, 35, 1, 2), 11, 1),
    case("one_pixel_one_image", (1, 70, 1, 1), 13, 1),
    case("depth_beyond_one_block", (1, 4200, 4, 4), 5, 1),
    case("pixels_beyond_one_block", (1, 5, 37, 34), 7, 1),
)

CASES: dict[str, tuple[Case, ...]] = {
    "depthwise": DEPTHWISE_CASES,
    "grouped": GROUPED_CASES,
    "pointwise": POINTWISE_CASES,
}

CUDA_CASES: dict[str, tuple[Case, ...]] = {"depthwise": DEPTHWISE_CUDA_CASES, "grouped": GROUPED_CUDA_CASES}


def by_name(op: str, *names: str) -> tuple[Case, ...]:
    """The named cases of `op`, in the order of the names."""
    known = {entry.name: entry for entry in CASES[op] + CUDA_CASES.get(op, ())}
    return tuple(known[name] for name in names)


def apply_op(
    op: str,
    case: Case,
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Calls the functional of `op` on the geometry of `case`."""
    function = getattr(cnnext.functional, f"{op}_conv2d")
    groups = (case.groups,) if op == "grouped" else ()
    return function(
        x, w, bias, case.stride, case.padding, case.dilation, *groups, activation=activation, backend=backend
    )


# --- Layouts: the same values, laid out in memory in every way that a caller may hand them over. ----------------------


def _slice_of_wider(t: torch.Tensor) -> torch.Tensor:
    wide = torch.full((t.shape[0] + 1, t.shape[1] + 3, t.shape[2] + 2, t.shape[3] + 5), torch.nan, dtype=t.dtype)
    view = wide[:-1, 2:-1, 1:-1, 3:-2]
    return view.copy_(t)


def _channels_last_slice(t: torch.Tensor) -> torch.Tensor:
    wide = torch.full((t.shape[0], t.shape[2] + 2, t.shape[3] + 1, t.shape[1] + 3), torch.nan, dtype=t.dtype)
    view = wide.permute(0, 3, 1, 2)[:, 1:-2, 1:-1, :-1]
    return view.copy_(t)


def _every_second(t: torch.Tensor, dim: int, memory_format: torch.memory_format) -> torch.Tensor:
    shape = [size * (2 if axis == dim else 1) for axis, size in enumerate(t.shape)]
    wide = torch.full(shape, torch.nan, dtype=t.dtype).contiguous(memory_format=memory_format)
    index = [slice(None, None, 2 if axis == dim else 1) for axis in range(4)]
    return wide[tuple(index)].copy_(t)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nchw": lambda t: t.contiguous(),
    "nhwc": lambda t: torch.empty(t.shape, dtype=t.dtype, memory_format=torch.channels_last).copy_(t),
    "nchw_slice": _slice_of_wider,
    "nhwc_slice": _channels_last_slice,
    "transposed_image": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_outermost": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every_second_column": lambda t: _every_second(t, 3, torch.contiguous_format),
    "every_second_channel_nhwc": lambda t: _every_second(t, 1, torch.channels_last),
    "one_row_expanded": lambda t: t[:, :, :1].expand_as(t),
    "one_image_expanded": lambda t: t[:1].expand_as(t),
    "one_channel_expanded": lambda t: t[:, :1].expand_as(t),
}
NATIVE_LAYOUTS = ("nchw", "nhwc")


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def random_operands(case: Case, dtype: torch.dtype, tag: str = "") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normally distributed input, filter and bias."""
    seed = generator(f"{case.name}/{tag}")
    x = torch.randn(case.input_shape, generator=seed, dtype=torch.float64)
    w = torch.randn(case.weight_shape, generator=seed, dtype=torch.float64) / 2
    bias = torch.randn(case.k, generator=seed, dtype=torch.float64)
    return x.to(dtype), w.to(dtype), bias.to(dtype)


def integer_operands(
    case: Case, dtype: torch.dtype, tag: str = "", bias_offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small integers, so that every product and partial sum is exact in float32.

    A `bias_offset` of one half keeps the sums off the kinks of relu, relu6 and hardswish, which lie at integers.
    """
    seed = generator(f"{case.name}/{tag}/integers")

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, shape, generator=seed).to(dtype)

    return integers(*case.input_shape), integers(*case.weight_shape), integers(case.k) + bias_offset


def random_grad(case: Case, dtype: torch.dtype, integers: bool = False) -> torch.Tensor:
    seed = generator(f"{case.name}/grad")
    if integers:
        return torch.randint(-2, 3, case.output_shape, generator=seed).to(dtype)
    return torch.randn(case.output_shape, generator=seed, dtype=torch.float64).to(dtype)


def plain_conv2d(case: Case, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """F.conv2d on the geometry of `case`."""
    return F.conv2d(x, w, bias, case.stride, case.padding, case.dilation, case.groups)


def with_size(case: Case, **changes: int) -> Case:
    """`case` with some sizes changed, for instance `n=0`."""
    return replace(case, **changes)
