"""What the channels_last depthwise kernels do beside the rest: slices of channels, and filters with infinities."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests import cuda_kernels
from tests.cases import by_name
from tests.cuda_kernels import CudaKernels, Operands, Placement, exact_results, integers
from tests.emulator import build
from tests.reference import assert_same_bits

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPS = ("forward", "backward_input")

# Cases, and how many channels more make their pixels a multiple of 8 elements.
SLICES = (("mobilenet_7", 7), ("mobilenet_14_s2", 7), ("filter_7x7", 6), ("filter_5x5_s2", 5))


@pytest.fixture(scope="module")
def kernels() -> CudaKernels:
    return CudaKernels()


def channel_slice_strides(shape: Sequence[int], layout: str, gap: int = 0) -> tuple[int, int, int, int]:
    """Strides of the first channels of a dense tensor that has `gap` more."""
    assert layout == "nhwc"
    _, c, h, w = shape
    pixel = c + gap
    return h * w * pixel, 1, w * pixel, pixel


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "gap"), SLICES)
def test_slices_of_channels(
    kernels: CudaKernels, monkeypatch: pytest.MonkeyPatch, name: str, gap: int, dtype: torch.dtype, op: str
) -> None:
    """All pixels are aligned to 16 bytes, but the channels are no multiple of a vector: none beyond is written."""
    monkeypatch.setattr(cuda_kernels, "dense_strides", channel_slice_strides)
    (case,) = by_name("depthwise", name)
    operands = integers(case, dtype)
    exact = exact_results(case, operands)
    for config, results in kernels.run(op, case, Placement("nhwc", gap), operands):
        for tensor, result in results.items():
            assert_same_bits(result, exact[tensor], f"{config}: {tensor}")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinite_filters_do_not_meet_padding(kernels: CudaKernels, dtype: torch.dtype, op: str) -> None:
    """A tap outside the image is left out, not multiplied by zero; no other term here makes a NaN."""
    names = ("mobilenet_7", "padding_beyond_filter", "filter_7x7", "cuda_64_channels_s2", "cuda_5x5_s2", "cuda_7x7_s2")
    for case in by_name("depthwise", *names):
        plain = integers(case, dtype)
        operands = Operands(plain.x.clamp_min(1), plain.w.clamp_min(1), None, plain.dy.clamp_min(1))
        operands.w[0] = torch.inf
        (*fast, (_, general)) = [
            (config, results["y" if op == "forward" else "dx"].clone())
            for config, results in kernels.run(op, case, Placement("nhwc"), operands)
        ]
        assert fast, case
        assert bool(general[:, 0].isinf().any())
        assert not bool(general.isnan().any())
        for config, result in fast:
            assert torch.equal(result, general), config
