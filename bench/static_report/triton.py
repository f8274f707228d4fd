"""What the Triton kernels compile to: registers, spills and shared memory of every kernel and setting, without a GPU.

    python -m bench.static_report.triton [--arch 80 90 100 120] [--only WORD] [--first] [--quick] [--json FILE]

A specimen is a call that a user may make. It is run on tensors without memory, and the launches that it would make are
compiled ahead of time, each with every setting that the launch may choose (cnnext/triton_kernels/launching.py). ptxas
and cuobjdump come with Triton. Exit status 1 if a setting that is chosen first spills.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cnnext.ops import ACTIVATIONS, Geometry
from cnnext.triton_kernels import launching
from cnnext.triton_kernels.launching import Settings

__all__ = ["ARCHITECTURES", "Compiled", "Launch", "Specimen", "compile_launch", "launches_of", "specimens"]

#: Compute capabilities, times ten: Ampere, Hopper, and both kinds of Blackwell.
ARCHITECTURES = (80, 90, 100, 120)

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

    def key(self) -> str:
        """What launches share that one stands for: their code, or just the setting if it is not chosen first."""
        types, constants, attributes = self.signature()
        if self.rank:
            types = {name: kind for name, kind in types.items() if kind.startswith("*")}
            constants = {name: constants.get(name) for name in ("CHANNELS_LAST", "PRECISION", "BACKWARD")}
            attributes = {}
        return repr((self.kernel.fn.__name__, self.chosen, types, constants, attributes))


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a launch; `rank` 0 is the setting that is chosen unless timings say otherwise."""

    specimen: str
    kernel: str
    settings: str
    rank: int
    arch: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    threads: int


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

# Layers of MobileNet, ConvNeXt, ResNet, ResNeXt and ShuffleNet, and such as no power of 2 divides.
_LAYERS = (
    _Layer("depthwise", "depthwise 3x3", (32, 128, 56, 56), 128, 3, 1, 128),
    _Layer("depthwise", "depthwise 3x3 s2", (32, 256, 28, 28), 256, 3, 2, 256, "fi"),
    _Layer("depthwise", "depthwise 7x7", (32, 96, 56, 56), 96, 7, 1, 96, "fw"),
    _Layer("depthwise", "depthwise odd", (3, 37, 13, 11), 74, 3, 2, 37),
    _Layer("grouped", "dense stem", (32, 3, 224, 224), 64, 7, 2, 1, "fw"),
    _Layer("grouped", "dense 3x3", (32, 128, 28, 28), 128, 3),
    _Layer("grouped", "dense 3x3 s2", (8, 128, 14, 14), 256, 3, 2, 1, "fi"),
    _Layer("grouped", "groups of 4", (32, 128, 56, 56), 128, 3, 1, 32),
    _Layer("grouped", "groups odd", (3, 21, 13, 11), 51, 3, 2, 3),
    _Layer("pointwise", "1x1", (32, 128, 56, 56), 128),
    _Layer("pointwise", "1x1 few pixels", (1, 1024, 7, 7), 1024, directions="fi"),
)
_BF16_LAYERS = ("depthwise 3x3", "dense 3x3", "groups of 4", "1x1")
_TF32_LAYERS = ("dense 3x3", "groups odd", "1x1")
_SEPARABLE_OUTPUTS = (32, 64, 128, 256)
_QUICK = (
    "depthwise 3x3 fp16 nhwc",
    "depthwise 3x3 fp32 nchw forward",
    "dense 3x3 fp32 nhwc forward",
    "dense 3x3 bf16 nchw backward_weight",
    "groups of 4 fp16 nhwc forward",
    "1x1 tf32 nhwc forward",
    "separable 128 fp16 nhwc",
)


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


def specimens(quick: bool = False) -> list[Specimen]:
    """Calls that between them reach every kernel, dtype, layout and candidate setting; a few of them if `quick`."""
    found: list[Specimen] = []
    for variant in _VARIANTS:
        # bfloat16 compiles to what float16 does, and TF32 is a matter of tl.dot, so some of their layers stand for all.
        names = {"bf16": _BF16_LAYERS, "tf32": _TF32_LAYERS}.get(variant.name)
        for layer in _LAYERS:
            if names is None or layer.name in names:
                found += layer.specimens(variant, ACTIVATIONS.index("silu"))
        found += [_separable(outputs, variant) for outputs in (_SEPARABLE_OUTPUTS if names is None else (128,))]
    # The activations differ in nothing else, so one kernel has them all.
    for index, activation in enumerate(ACTIVATIONS):
        layer = _Layer("depthwise", f"depthwise {activation}", (8, 64, 14, 14), 64, 3, 1, 64, "f")
        found += layer.specimens(_VARIANTS[0], index)
    return [one for one in found if one.name.startswith(_QUICK)] if quick else found


# -------------------------------------------------------------------------------------------------------------- compile


def launches_of(specimen: Specimen, every_setting: bool = True) -> list[Launch]:
    """The launches that a call would make, with every setting that each could have."""
    found: list[Launch] = []

    def record(kernel: Any, candidates: Sequence[Settings], programs: Any, arguments: dict[str, Any]) -> None:
        for rank, chosen in enumerate(candidates if every_setting else candidates[:1]):
            assert programs(chosen) > 0
            found.append(Launch(specimen.name, kernel, arguments, chosen, rank))

    with mock.patch.object(launching, "run", record):
        specimen.call()
    return found


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes of its stack, where spilled registers go."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump said nothing about registers: {text}")
    return int(registers[1]), int(stack[1])


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compiles one launch for one architecture.

    Raises:
        Exception: whatever Triton raises if it does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, attributes = launch.signature()
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.chosen.warps, "num_stages": launch.chosen.stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spilled = _resources(kernel.asm["cubin"])
    return Compiled(
        launch.specimen,
        launch.kernel.fn.__name__,
        str(launch.chosen),
        launch.rank,
        arch,
        registers,
        spilled,
        kernel.metadata.shared,
        launch.chosen.warps * 32,
    )


# --------------------------------------------------------------------------------------------------------------- report


def report(rows: Sequence[Compiled]) -> str:
    """A line for each kernel and setting: the most of each resource over the architectures and specimens."""
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.settings), []).append(row)
    lines = [f"{'kernel and settings':<96} {'first':>5} {'registers':>9} {'spilled':>7} {'shared':>6}"]
    for (kernel, chosen), group in sorted(groups.items()):
        most = [max(getattr(row, field) for row in group) for field in ("registers", "spilled_bytes", "shared_bytes")]
        first = "yes" if any(row.rank == 0 for row in group) else "no"
        lines.append(f"{kernel + '  ' + chosen:<96} {first:>5} {most[0]:>9} {most[1]:>7} {most[2]:>6}")
    return "\n".join(lines)


@contextmanager
def _own_cache() -> Iterator[None]:
    """Triton's cache in a folder of its own, so that nothing is taken from an earlier run."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_report.triton", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, times ten")
    parser.add_argument("--only", default="", help="only specimens with this word in their name")
    parser.add_argument("--first", action="store_true", help="only the settings that are chosen first")
    parser.add_argument("--quick", action="store_true", help="a few specimens, with their first settings")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, so there is nothing to compile")
    chosen = [one for one in specimens(options.quick) if options.only in one.name]
    # Many layers end in the same kernel, the second stage of the weight gradient for one.
    launches: dict[str, Launch] = {}
    for specimen in chosen:
        for launch in launches_of(specimen, every_setting=not (options.quick or options.first)):
            launches.setdefault(launch.key(), launch)
    with _own_cache():
        rows = [compile_launch(launch, arch) for launch in launches.values() for arch in options.arch]
    print(report(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    spilling = [row for row in rows if row.rank == 0 and row.spilled_bytes]
    for row in spilling:
        print(f"SPILLS {row.spilled_bytes} bytes: {row.kernel} {row.settings} sm_{row.arch} {row.specimen}")
    print(f"{len(rows)} compiled, {len(spilling)} first choices spill")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
