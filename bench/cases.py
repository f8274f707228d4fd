"""What is measured: networks, and each of their distinct convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

import cnnext

PASSES = ("forward", "backward_input", "backward_weight")
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

#: The kinds of layer, in the order of the report, and the module that cnnext has for each.
KINDS: dict[str, type[nn.Conv2d]] = {
    "depthwise": cnnext.DepthwiseConv2d,
    "pointwise": cnnext.PointwiseConv2d,
    "grouped": cnnext.GroupedConv2d,
    "dense": cnnext.GroupedConv2d,
}


@dataclass(frozen=True)
class LayerShape:
    """The geometry of one convolution layer, apart from the batch.

    C, H, W are the input's sizes, K the output channels, R x S the filter, P x Q the output.
    """

    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool

    @classmethod
    def of(cls, conv: nn.Conv2d, height: int, width: int) -> LayerShape:
        """Read the geometry off a module and the size of its input.

        Raises:
            ValueError: if the padding is "same" or not of zeros, which no network here uses.
        """
        if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
            raise ValueError(f"only explicit zero padding can be benchmarked, got {conv}")
        return cls(
            C=conv.in_channels,
            H=height,
            W=width,
            K=conv.out_channels,
            R=conv.kernel_size[0],
            S=conv.kernel_size[1],
            stride=(conv.stride[0], conv.stride[1]),
            padding=(conv.padding[0], conv.padding[1]),
            dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups,
            bias=conv.bias is not None,
        )

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.groups > 1:
            return "depthwise" if self.groups == self.C else "grouped"
        return "pointwise" if self.R == self.S == 1 else "dense"

    @property
    def P(self) -> int:
        """Height of the output."""
        return (self.H + 2 * self.padding[0] - self.dilation[0] * (self.R - 1) - 1) // self.stride[0] + 1

    @property
    def Q(self) -> int:
        """Width of the output."""
        return (self.W + 2 * self.padding[1] - self.dilation[1] * (self.S - 1) - 1) // self.stride[1] + 1

    @property
    def name(self) -> str:
        """A short unique name, such as ``depthwise 3x3 s2 64->64 112x112``."""
        stride = f" s{self.stride[0]}" if self.stride[0] == self.stride[1] else f" s{self.stride[0]}x{self.stride[1]}"
        dilation = "" if self.dilation == (1, 1) else f" d{self.dilation[0]}x{self.dilation[1]}"
        groups = f" g{self.groups}" if self.kind == "grouped" else ""
        bias = " bias" if self.bias else ""
        filter_size = f"{self.R}x{self.S}"
        return f"{self.kind} {filter_size}{stride}{dilation}{groups} {self.C}->{self.K} {self.H}x{self.W}{bias}"

    def multiply_adds(self, batch: int) -> int:
        """Return the multiply-adds of one forward call, padding counted in."""
        return batch * self.K * self.P * self.Q * (self.C // self.groups) * self.R * self.S

    def bytes(self, batch: int, element_bytes: int) -> int:
        """Return the least bytes of a call: input, filter and output once each, whichever of them is computed."""
        elements = batch * (self.C * self.H * self.W + self.K * self.P * self.Q)
        return (elements + self.K * (self.C // self.groups) * self.R * self.S) * element_bytes

    def make(self, module: type[nn.Conv2d]) -> nn.Conv2d:
        """Build a module of the class ``module`` with this geometry."""
        return module(
            self.C,
            self.K,
            kernel_size=(self.R, self.S),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias,
        )


@dataclass
class Layer:
    """A distinct layer and where it occurs."""

    shape: LayerShape
    #: Occurrences by network.
    counts: dict[str, int] = field(default_factory=dict)
    #: Whether it reads images somewhere, and so never needs the gradient of its input.
    is_stem: bool = False

    @property
    def passes(self) -> tuple[str, ...]:
        """The passes that training runs through this layer."""
        return tuple(p for p in PASSES if not (self.is_stem and p == "backward_input"))


def input_size(network: nn.Module) -> tuple[int, int, int]:
    """Return the (channels, height, width) that a network of `cnnext.models` is meant for."""
    return network.input_size  # type: ignore[return-value]


def collect_layers(networks: dict[str, nn.Module]) -> list[Layer]:
    """List the distinct convolution layers of networks, in the order in which they run.

    Args:
        networks: networks by name, each with an ``input_size`` (channels, height, width).

    Returns:
        One `Layer` for each distinct geometry.
    """
    return merge_layers({name: shapes_in_order(network, input_size(network)) for name, network in networks.items()})


def merge_layers(shapes: dict[str, Sequence[LayerShape]]) -> list[Layer]:
    """The distinct ones of the layers of networks, each network's in the order in which they run."""
    layers: dict[LayerShape, Layer] = {}
    for name, in_order in shapes.items():
        for position, shape in enumerate(in_order):
            layer = layers.setdefault(shape, Layer(shape))
            layer.counts[name] = layer.counts.get(name, 0) + 1
            layer.is_stem |= position == 0
    return list(layers.values())


def shapes_in_order(network: nn.Module, image_size: Sequence[int]) -> list[LayerShape]:
    """The geometry of every convolution that an image of (channels, height, width) passes, in the order of running."""
    shapes: list[LayerShape] = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        shapes.append(LayerShape.of(module, *inputs[0].shape[-2:]))

    handles = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.Conv2d)]
    was_training = network.training
    try:
        with torch.inference_mode():
            parameter = next(network.parameters())
            image = torch.zeros(1, *image_size, dtype=parameter.dtype, device=parameter.device)
            network.eval()(image)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return shapes


def to_pytorch(network: nn.Module) -> nn.Module:
    """Replace every convolution of ``network``, in place, by a plain `nn.Conv2d` with the same Parameters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d:
                plain = LayerShape.of(child, height=1, width=1).make(nn.Conv2d)
                plain.weight, plain.bias = child.weight, child.bias
                plain.train(child.training)
                setattr(parent, name, plain)
    return network
