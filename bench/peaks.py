"""What the machine can do at most, measured: the two roofs of a roofline plot."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bench.timer import Clock, compare

_COPY_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
_MATRIX = {"cpu": 1536, "cuda": 8192}
#: On a CPU PyTorch multiplies matrices of float16 so slowly that a small one has to do.
_SMALL_MATRIX = 384


@dataclass(frozen=True)
class Peaks:
    """Rates that nothing on this machine exceeds by much."""

    #: Bytes a second of a large copy, reads and writes together.
    copy_bytes_per_s: float
    #: Multiply-adds a second of a large matrix product in the dtype under test, TF32 as PyTorch is set.
    multiply_adds_per_s: float


def measure_peaks(device: torch.device, dtype: torch.dtype, clock: Clock, seconds: float = 1.0) -> Peaks:
    """Time a copy and a matrix product, each larger than the caches.

    Args:
        device: to measure.
        dtype: of the matrices.
        clock: of the device.
        seconds: for each of the two, about.
    """
    source = torch.zeros(_COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    n = _SMALL_MATRIX if device.type == "cpu" and dtype == torch.float16 else _MATRIX[device.type]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    copy = compare({"copy": lambda: target.copy_(source)}, clock, seconds)["copy"]
    product = compare({"product": lambda: a @ b}, clock, seconds)["product"]
    return Peaks(2 * source.numel() / copy.median, n**3 / product.median)
