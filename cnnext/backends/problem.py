"""What a time is measured for: one direction of one convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from cnnext.ops import Geometry

__all__ = ["DIRECTIONS", "Problem"]

DIRECTIONS = ("forward", "backward_input", "backward_weight")


class Problem(NamedTuple):
    """Everything about a call, apart from the device, that its time depends on."""

    family: str
    direction: str
    dtype: torch.dtype
    #: (N, C, H, W)
    input_size: tuple[int, ...]
    #: (K, C / groups, R, S)
    weight_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    #: The layout of the result.
    channels_last: bool
    bias: bool
    activation: int

    @classmethod
    def of(
        cls,
        family: str,
        direction: str,
        dtype: torch.dtype,
        input_size: Sequence[int],
        weight_size: Sequence[int],
        geometry: Geometry,
        channels_last: bool,
        bias: bool = False,
        activation: int = 0,
    ) -> Problem:
        """The problem with these sizes, given as any sequences."""
        return cls(
            family,
            direction,
            dtype,
            tuple(input_size),
            tuple(weight_size),
            tuple(geometry.stride),
            tuple(geometry.padding),
            tuple(geometry.dilation),
            geometry.groups,
            channels_last,
            bias,
            activation,
        )

    def key(self, setting: str) -> str:
        """A line that stands for this problem under a setting of the device, such as its number of threads."""
        sizes = (self.input_size, self.weight_size, self.stride, self.padding, self.dilation)
        layout = "channels_last" if self.channels_last else "nchw"
        return " ".join(
            (
                self.family,
                self.direction,
                str(self.dtype).removeprefix("torch."),
                layout,
                *("x".join(map(str, size)) for size in sizes),
                f"groups{self.groups}",
                f"bias{int(self.bias)}",
                f"activation{self.activation}",
                setting,
            )
        )
