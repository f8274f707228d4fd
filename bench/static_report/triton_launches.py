"""The launches of the Triton kernels that are compiled without a GPU: calls of layers, as a network makes them.

A specimen is a call that a user may make. It is run on tensors without memory, and the launches that it would make are
caught, each with every setting that the launch may choose (cnnext/triton_kernels/launching.py).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from bench.cases import LayerShape
from cnnext.ops import ACTIVATIONS, Geometry
from cnnext.triton_kernels import launching
from cnnext.triton_kernels.launching import Settings

__all__ = ["Launch", "Specimen", "cover", "every", "launches_of", "layer_specimens", "specimens"]

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Specimen:
    """One call of an operator: a name for the report, and what makes the launches."""

    name: str
    call: Callable[[], Any]


@dataclass(frozen=True)
class Launch:
    """One kernel with the arguments of one launch, and one of its candidate settings."""

    specimen: str
    kernel: Any
    arguments: dict[str, Any]
    chosen: Settings
    rank: int

    def signature(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[Any]]]:
        """Types, constants and divisibilities as a launch on a GPU would find them."""
        types, constants, attributes = {}, {}, {}
        values = {**self.arguments, **self.chosen.blocks}
        for index, parameter in enumerate(self.kernel.params):
            name, value = parameter.name, values[parameter.name]
            if parameter.is_constexpr:
                types[name], constants[name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                types[name] = f"*{_TYPES[value.dtype]}"
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif value == 1:
                types[name], constants[name] = "constexpr", 1
            else:
                types[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(index,)] = [["tt.divisibility", 16]]
        return types, constants, attributes

    @property
    def settings(self) -> tuple[str, str]:
        """The kernel and its setting."""
        return self.kernel.fn.__name__, str(self.chosen)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What decides how tl.dot and the loads are compiled: dtypes, layout, precision, direction."""
        types, constants, _ = self.signature()
        pointers = tuple(kind for kind in types.values() if kind.startswith("*"))
        return pointers, *(constants.get(name) for name in ("CHANNELS_LAST", "PRECISION", "BACKWARD"))

    @property
    def code(self) -> str:
        """What launches share that compile to the same code."""
        return repr((self.settings, self.signature()))


# ------------------------------------------------------------------------------------------------------------ specimens


def _tensor(shape: Sequence[int], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)


@dataclass(frozen=True)
class _Layer:
    """A layer of a network: input (N, C, H, W), and which of its directions to compile: forward, input, weight."""

    family: str
    name: str
    size: tuple[int, int, int, int]
    outputs: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    directions: str = "fiw"

    def specimens(self, variant: _Variant, activation: int) -> Iterator[Specimen]:
        module = importlib.import_module(f"cnnext.triton_kernels.{self.family}")
        n, c, h, w = self.size
        padding = self.kernel // 2
        p, q = ((length + 2 * padding - self.kernel) // self.stride + 1 for length in (h, w))
        geometry = Geometry((self.stride,) * 2, (padding,) * 2, (1, 1), self.groups)
        dtype, channels_last = variant.dtype, variant.channels_last
        x = _tensor(self.size, dtype, channels_last)
        weight = _tensor((self.outputs, c // self.groups, self.kernel, self.kernel), dtype, channels_last)
        bias = torch.empty(self.outputs, dtype=dtype, device="meta")
        grad = _tensor((n, self.outputs, p, q), dtype, channels_last)
        calls: dict[str, tuple[str, Callable[[], Any]]] = {
            "f": ("forward", lambda: module.forward(x, weight, bias, geometry, activation)),
            "i": (
                "backward_input",
                lambda: module.backward_input(grad, weight, self.size, geometry, channels_last),
            ),
            "w": (
                "backward_weight",
                lambda: module.backward_weight(grad, x, weight.shape, geometry, True, channels_last),
            ),
        }
        for direction in self.directions:
            name, call = calls[direction]
            yield Specimen(f"{self.name} {variant} {name}", variant.bound(call))


@dataclass(frozen=True)
class _Variant:
    """Dtype, precision of float32 products, and layout."""

    name: str
    dtype: torch.dtype
    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.name} {'nhwc' if self.channels_last else 'nchw'}"

    def bound(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """`call` under PyTorch's setting for this precision."""

        def under_setting() -> Any:
            before = torch.backends.cudnn.conv.fp32_precision
            try:
                torch.backends.cudnn.conv.fp32_precision = self.precision
                return call()
            finally:
                torch.backends.cudnn.conv.fp32_precision = before

        return under_setting


_VARIANTS = tuple(
    _Variant(name, dtype, precision, channels_last)
    for name, dtype, precision in (
        ("fp16", torch.float16, "ieee"),
        ("bf16", torch.bfloat16, "ieee"),
        ("fp32", torch.float32, "ieee"),
        ("tf32", torch.float32, "tf32"),
    )
    for channels_last in (True, False)
)

# Layers of MobileNet, EfficientNet, ConvNeXt, RepLKNet, ResNet, ResNeXt and ShuffleNet, and odd ones.
_LAYERS = (
    _Layer("depthwise", "depthwise 3x3", (32, 128, 56, 56), 128, 3, 1, 128),
    _Layer("depthwise", "depthwise 3x3 s2", (32, 256, 28, 28), 256, 3, 2, 256, "fi"),
    _Layer("depthwise", "depthwise 3x3 of 32", (32, 32, 112, 112), 32, 3, 1, 32, "fi"),
    _Layer("depthwise", "depthwise 3x3 of 24", (32, 24, 112, 112), 24, 3, 2, 24),
    _Layer("depthwise", "depthwise 3x3 of 16", (32, 16, 112, 112), 16, 3, 1, 16),
    _Layer("depthwise", "depthwise 5x5", (32, 240, 28, 28), 240, 5, 1, 240),
    _Layer("depthwise", "depthwise 5x5 s2", (32, 72, 56, 56), 72, 5, 2, 72, "fi"),
    _Layer("depthwise", "depthwise 7x7", (32, 96, 56, 56), 96, 7, 1, 96),
    _Layer("depthwise", "depthwise 31x31", (8, 128, 28, 28), 128, 31, 1, 128),
    _Layer("depthwise", "depthwise few pixels", (1, 512, 14, 14), 512, 3, 2, 512, "f"),
    _Layer("depthwise", "depthwise odd", (3, 37, 13, 11), 74, 3, 2, 37),
    _Layer("grouped", "dense stem 3x3", (128, 3, 224, 224), 32, 3, 2, 1),
    _Layer("grouped", "dense stem of one image", (1, 3, 224, 224), 32, 3, 2, 1, "i"),
    _Layer("grouped", "dense stem 7x7", (32, 3, 224, 224), 64, 7, 2, 1, "fw"),
    _Layer("grouped", "dense 3x3", (32, 128, 28, 28), 128, 3),
    _Layer("grouped", "dense 3x3 s2", (8, 128, 14, 14), 256, 3, 2, 1, "fi"),
    _Layer("grouped", "groups of 2", (32, 64, 28, 28), 64, 3, 1, 32),
    _Layer("grouped", "groups of 4", (32, 128, 56, 56), 128, 3, 1, 32),
    _Layer("grouped", "groups of 8", (32, 256, 28, 28), 256, 3, 2, 32),
    _Layer("grouped", "groups of 16", (32, 512, 14, 14), 512, 3, 1, 32),
    _Layer("grouped", "groups of 32", (32, 1024, 7, 7), 1024, 3, 1, 32),
    _Layer("grouped", "groups odd", (3, 21, 13, 11), 51, 3, 2, 3),
    _Layer("pointwise", "1x1", (32, 128, 56, 56), 128),
    _Layer("pointwise", "1x1 from 64", (32, 64, 56, 56), 128),
    _Layer("pointwise", "1x1 from 32", (8, 32, 112, 112), 64),
    _Layer("pointwise", "1x1 to 24", (32, 144, 56, 56), 24),
    _Layer("pointwise", "1x1 to 16", (32, 32, 112, 112), 16),
    _Layer("pointwise", "1x1 few pixels", (1, 1024, 7, 7), 1024, directions="fi"),
    _Layer("pointwise", "1x1 few pixels to 24", (1, 144, 14, 14), 24),
)
_BF16_LAYERS = ("depthwise 3x3", "dense 3x3", "groups of 4", "1x1")
_TF32_LAYERS = ("dense 3x3", "groups odd", "1x1")
_SEPARABLE_OUTPUTS = (16, 32, 64, 128, 256)


def _separable(outputs: int, variant: _Variant) -> Specimen:
    separable = importlib.import_module("cnnext.triton_kernels.separable")
    size, relu6 = (32, 128, 28, 28), ACTIVATIONS.index("relu6")
    x = _tensor(size, variant.dtype, variant.channels_last)
    first, second = _tensor((128, 1, 3, 3), variant.dtype), _tensor((outputs, 128, 1, 1), variant.dtype)
    biases = [torch.empty(count, dtype=variant.dtype, device="meta") for count in (128, outputs)]
    geometry = Geometry((1, 1), (1, 1), (1, 1), 128)
    return Specimen(
        f"separable {outputs} {variant}",
        variant.bound(lambda: separable.forward(x, first, biases[0], second, biases[1], geometry, relu6, relu6)),
    )


def specimens() -> list[Specimen]:
    """Calls that between them reach every kernel, dtype, layout and candidate setting."""
    found: list[Specimen] = []
    for variant in _VARIANTS:
        # bfloat16 compiles to what float16 does, and TF32 is a matter of tl.dot, so some of their layers stand for all.
        names = {"bf16": _BF16_LAYERS, "tf32": _TF32_LAYERS}.get(variant.name)
        for layer in _LAYERS:
            if names is None or layer.name in names:
                found += layer.specimens(variant, ACTIVATIONS.index("silu"))
        found += [
            _separable(outputs, variant) for outputs in ((128,) if variant.name == "bf16" else _SEPARABLE_OUTPUTS)
        ]
    # The activations differ in nothing else, so one kernel has them all.
    for index, activation in enumerate(ACTIVATIONS):
        layer = _Layer("depthwise", f"depthwise {activation}", (8, 64, 14, 14), 64, 3, 1, 64, "f")
        found += layer.specimens(_VARIANTS[0], index)
    return found


def layer_specimens(shape: LayerShape, images: int) -> list[Specimen]:
    """The calls of a layer of a network, in each direction, dtype and layout."""
    family = shape.kind if shape.kind in ("depthwise", "pointwise") else "grouped"
    size = (images, shape.C, shape.H, shape.W)
    name = f"{shape.kind} {shape.R}x{shape.S} {size} to {shape.K}"
    layer = _Layer(family, name, size, shape.K, shape.R, shape.stride[0], shape.groups)
    return [one for variant in _VARIANTS for one in layer.specimens(variant, 0)]


# ------------------------------------------------------------------------------------------------------------- launches


def launches_of(specimen: Specimen) -> list[Launch]:
    """The launches that a call would make, with every setting that each could have."""
    found: list[Launch] = []

    def record(kernel: Any, candidates: Sequence[Settings], programs: Any, arguments: dict[str, Any]) -> None:
        for rank, chosen in enumerate(candidates):
            assert programs(chosen) > 0
            found.append(Launch(specimen.name, kernel, arguments, chosen, rank))

    with mock.patch.object(launching, "run", record):
        specimen.call()
    return found


def every(launches: Sequence[Launch], architectures: Sequence[int]) -> list[tuple[Launch, int]]:
    """What to compile of the launches: all that differ in their code.

    One of each kind stands for a setting that is not chosen first: it is only used if it is found to be fast.
    """
    different: dict[Any, Launch] = {}
    for launch in launches:
        different.setdefault((launch.settings, launch.kind) if launch.rank else launch.code, launch)
    return [(launch, architecture) for launch in different.values() for architecture in architectures]


def cover(launches: Sequence[Launch], architectures: Sequence[int]) -> list[tuple[Launch, int]]:
    """A few of `every` that have each setting, in a time that continuous integration can take.

    A setting that may be chosen first is there for every architecture, and with each kind of launch; which kind is
    compiled for which architecture changes from one setting to the next. Other settings are there once.
    """
    of_settings: dict[tuple[str, str], list[Launch]] = {}
    for launch in launches:
        of_settings.setdefault(launch.settings, []).append(launch)
    found: list[tuple[Launch, int]] = []
    for turn, group in enumerate(of_settings.values()):
        first = [launch for launch in group if launch.rank == 0]
        of_kind: dict[Any, list[Launch]] = {}
        for launch in first or group:
            of_kind.setdefault(launch.kind, []).append(launch)
        pools = list(of_kind.values())
        for index in range(max(len(architectures), len(pools)) if first else 1):
            pool = pools[(turn + index) % len(pools)]
            found.append((pool[index % len(pool)], architectures[(turn + index) % len(architectures)]))
    return found
