"""A network as the table of its layers, as papers print it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from cnnext import backends
from cnnext.modules import DepthwiseConv2d, GroupedConv2d, PointwiseConv2d

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_OPERATORS = {
    DepthwiseConv2d: "depthwise_conv2d",
    GroupedConv2d: "grouped_conv2d",
    PointwiseConv2d: "pointwise_conv2d",
}


class LayerRow(NamedTuple):
    """One call of one layer.

    Attributes:
        name: of the module in the network.
        kind: of layer, with its stride, as in "conv dw / s2".
        filter_shape: (R, S, C, K); a depthwise filter has a C of 1. Pooling: (R, S). Empty if there is none.
        input_size: (C, H, W) of a convolution or pooling, (C,) of a linear layer.
        output_size: likewise.
        parameters: of the layer; 0 at the second call of a layer that is called twice.
        multiply_adds: for one image, without additions of biases.
        backend: what ran a convolution: "cuda", "triton", "cpu" or "aten"; "" for other layers, which torch runs.
    """

    name: str
    kind: str
    filter_shape: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    parameters: int
    multiply_adds: int
    backend: str


@dataclass(frozen=True)
class Summary:
    """The table of a network; see `summary`.

    Attributes:
        rows: convolutions, linear layers, poolings and other layers with parameters, in the order in which they run.
            Batch norms are left out of the rows.
        parameters: of the whole network.
        multiply_adds: of the whole network, for one image.
    """

    rows: tuple[LayerRow, ...]
    parameters: int
    multiply_adds: int

    def __repr__(self) -> str:
        return f"Summary({len(self.rows)} layers, {self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds)"

    def __str__(self) -> str:
        header = ("layer", "type / stride", "filter shape", "input size", "parameters", "multiply-adds", "backend")
        lines = [
            (
                row.name,
                row.kind,
                _by(row.filter_shape),
                _by((*row.input_size[1:], row.input_size[0])),
                f"{row.parameters:,}",
                f"{row.multiply_adds:,}",
                row.backend,
            )
            for row in self.rows
        ]
        others = self.parameters - sum(row.parameters for row in self.rows)
        if others:
            lines.append(("", "norms", "", "", f"{others:,}", "", ""))
        lines.append(("", "sum", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}", ""))
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        numbers = {4, 5}

        def text(cells: tuple[str, ...]) -> str:
            aligned = [
                cell.rjust(width) if i in numbers else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "  ".join(aligned).rstrip()

        return "\n".join([text(header), "  ".join("-" * width for width in widths), *map(text, lines)])


def _by(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _backend_of(conv: nn.Conv2d, input: torch.Tensor) -> str:
    """Name the backend that runs this convolution of this input."""
    op = next((op for kind, op in _OPERATORS.items() if isinstance(conv, kind)), None)
    if op is None:
        return "aten"
    padding: Any = conv.padding
    if conv.padding_mode != "zeros":
        input = nn.functional.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding = 0
    groups = {"groups": conv.groups} if op == "grouped_conv2d" else {}
    chosen = backends.chosen(
        op, input, conv.weight, conv.bias, stride=conv.stride, padding=padding, dilation=conv.dilation, **groups
    )
    return chosen["forward"]


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        name = "conv"
        if module.groups > 1:
            name += " dw" if module.groups == module.in_channels else f" {module.groups} groups"
        return f"{name} / s{_by_stride(module.stride)}"
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return f"{'max' if isinstance(module, nn.MaxPool2d) else 'avg'} pool / s{_by_stride(module.stride)}"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return "avg pool"
    return "fc" if isinstance(module, nn.Linear) else type(module).__name__.lower()


def _by_stride(stride: int | tuple[int, ...]) -> str:
    first, *rest = (stride,) if isinstance(stride, int) else stride
    return str(first) if not rest or rest[0] == first else f"{first}x{rest[0]}"


def _filter_shape(module: nn.Module, input: torch.Tensor, output: torch.Tensor) -> tuple[int, ...]:
    if isinstance(module, nn.Conv2d):
        return (*module.kernel_size, module.in_channels // module.groups, module.out_channels)
    if isinstance(module, nn.Linear):
        return (module.in_features, module.out_features)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        size = module.kernel_size
        return (size, size) if isinstance(size, int) else tuple(size)
    if isinstance(module, nn.AdaptiveAvgPool2d) and output.shape[-2:] == (1, 1):
        return tuple(input.shape[-2:])
    return ()


def summary(model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Summary:
    """Print the table of a network's layers, and return it.

    The network runs once, in evaluation mode and without gradients, on an image of zeros of its own device and dtype,
    so the backends are those that run there.

    Args:
        model: any network that takes one batch of images; those of `create_model` know their size.
        input_size: (channels, height, width) of the image; None for ``model.input_size``.

    Returns:
        The rows and their sums. ``str`` of it is what is printed: for each layer its name, its type and stride, the
        shape of its filter (R x S x C x K), the size of its input (H x W x C), parameters, multiply-adds for one image
        and the backend that was chosen.

    Raises:
        ValueError: if there is no ``input_size``.

    Example:
        >>> import cnnext
        >>> table = cnnext.models.summary(cnnext.models.lenet())  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        layer  type / stride  filter shape   input size   parameters  multiply-adds  backend
        -----...
        c1.0   conv / s1      5 x 5 x 1 x 6  32 x 32 x 1  156         117,600        ...
               sum                                        60,850      326,520
        >>> table.parameters
        60850
    """
    size = input_size if input_size is not None else getattr(model, "input_size", None)
    if size is None:
        raise ValueError(f"{type(model).__name__} does not say its input_size: pass (channels, height, width)")
    rows: list[LayerRow] = []
    names = {module: name for name, module in model.named_modules()}
    seen: set[nn.Module] = set()

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        input = inputs[0]
        multiply_adds = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            positions = output[0].numel() // module.weight.shape[0]
            multiply_adds = module.weight.numel() * positions
        parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        rows.append(
            LayerRow(
                names[module],
                _kind(module),
                _filter_shape(module, input, output),
                tuple(input.shape[1:]),
                tuple(output.shape[1:]),
                0 if module in seen else parameters,
                multiply_adds,
                _backend_of(module, input) if isinstance(module, nn.Conv2d) else "",
            )
        )
        seen.add(module)

    handles = []
    for module in model.modules():
        owns = any(True for _ in module.parameters(recurse=False))
        if isinstance(module, _POOLS) or (owns and not isinstance(module, nn.BatchNorm2d)):
            handles.append(module.register_forward_hook(record))
    parameter = next(model.parameters(), torch.empty(0))
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    result = Summary(tuple(rows), sum(p.numel() for p in model.parameters()), sum(row.multiply_adds for row in rows))
    print(result)
    return result
