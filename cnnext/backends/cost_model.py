"""Where PyTorch's own convolution is expected to be faster than cnnext's CPU kernels, without measuring.

oneDNN, beneath PyTorch, is hard to beat where a convolution is a large matrix product: dense layers, and in bfloat16
the 1x1 layers too on a processor that multiplies bfloat16 itself. Where the product is small, or in float16 and
float64, or depthwise, cnnext is faster. The limits are read off measurements on a Zen 4
(tests/data/selection_cpu.json, which tests/test_selection.py holds the rules against); other machines differ a little,
and `cnnext.backends.benchmark` measures instead. No GPU has been measured, so there are no rules for one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from cnnext.backends import operators
from cnnext.backends.call import ConvCall

__all__ = ["RULES", "Rule", "prefers_aten"]


class Rule(NamedTuple):
    """A convolution of which all of this holds is left to PyTorch."""

    #: None for both layouts.
    channels_last: bool | None
    #: Least input channels in a group: the depth of the product is this times the filter's taps.
    channels_per_group: int
    #: Least multiply-adds of a call. Below, what a call costs before it computes decides, and cnnext's is smaller.
    multiply_adds: int
    #: Most pixels of an output plane, None for any. A small plane with many channels is limited by reading the filter.
    pixels: int | None = None

    def __str__(self) -> str:
        layout = {None: "", True: "channels_last ", False: "NCHW "}[self.channels_last]
        pixels = "" if self.pixels is None else f" to {self.pixels} pixels"
        return (
            f"a {layout}product{pixels} of {self.channels_per_group} or more channels a group and "
            f"{self.multiply_adds / 1e6:g} M or more multiply-adds is faster there"
        )


_HAS_ONEDNN = torch.backends.mkldnn.is_available()
# Older versions of torch do not say what the processor can do; then "cpu" runs bfloat16.
_CAN: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
_MULTIPLIES_BFLOAT16 = any(_CAN.get(feature) for feature in ("avx512_bf16", "amx_bf16"))

_FLOAT32 = (
    Rule(channels_last=True, channels_per_group=16, multiply_adds=10_000_000),
    Rule(channels_last=False, channels_per_group=64, multiply_adds=20_000_000, pixels=200),
)
_BFLOAT16 = (Rule(channels_last=None, channels_per_group=32, multiply_adds=8_000_000),)

#: By family and dtype.
RULES: dict[tuple[str, torch.dtype], tuple[Rule, ...]] = {}
if _HAS_ONEDNN:
    RULES["grouped", torch.float32] = _FLOAT32
    if _MULTIPLIES_BFLOAT16:
        RULES["grouped", torch.bfloat16] = RULES["pointwise", torch.bfloat16] = _BFLOAT16


def prefers_aten(call: ConvCall) -> Rule | None:
    """The rule by which `call`, on the CPU and not depthwise, is left to PyTorch; None if there is none."""
    family, input, weight, _, stride, padding, dilation, _, _ = call
    per_group = weight.shape[1]
    rules = [
        rule
        for rule in RULES.get((family, operators.dtype_seen(input)), ())
        if _holds(per_group >= rule.channels_per_group)
    ]
    if not rules:
        return None
    n, _, h, w = input.shape
    k, _, r, s = weight.shape
    p = (h + 2 * padding[0] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + 2 * padding[1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    channels_last = not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last)
    for rule in rules:
        if (
            (rule.channels_last is None or rule.channels_last == channels_last)
            and (rule.pixels is None or _holds(p * q <= rule.pixels))
            and _holds(n * k * p * q * per_group * r * s >= rule.multiply_adds)
        ):
            return rule if torch.compiler.is_compiling() or torch.backends.mkldnn.enabled else None
    return None


def _holds(condition: Any) -> bool:
    """The condition; False if it is one about sizes that a trace leaves open, which must not become a guard."""
    if condition is True or condition is False:
        return condition
    if isinstance(condition, torch.Tensor):  # torch.jit.trace makes tensors of sizes
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
