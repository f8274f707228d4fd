"""What a call launches: the planners and launchers of csrc/cuda run on the host, with every launch written down."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.static_report.compile import (
    BUILD,
    CUDA_SOURCES,
    ROOT,
    ToolMissingError,
    content_key,
    exclusively,
    jobs,
    run_tool,
)
from bench.static_report.rates import WARP, Architecture

HERE = Path(__file__).resolve().parent
_EMULATOR = ROOT / "tests" / "emulator"

OPS = ("forward", "backward_input", "backward_weight")
LAYOUTS = ("nchw", "nhwc")
#: Bytes of the dtypes, in the order of their numbers.
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Launch:
    """One kernel launch, as the host code makes it."""

    #: The kernel's mangled name, as g++ has it.
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    #: Dynamic shared memory.
    shared_bytes: int
    #: The kernel's arguments as they lie in constant memory.
    parameters: bytes

    @property
    def blocks(self) -> int:
        """Blocks of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]


@dataclass(frozen=True)
class Call:
    """A convolution or one of its gradients, on dense operands: depthwise, or, with `K` and `groups`, grouped."""

    op: str
    layout: str
    dtype: str
    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    #: Output channels and groups of a grouped convolution; 0 for a depthwise one, which has C of each.
    K: int = 0
    groups: int = 0

    @property
    def is_depthwise(self) -> bool:
        """Whether the depthwise kernels run this."""
        return self.groups == 0

    @property
    def output_channels(self) -> int:
        """K."""
        return self.K or self.C

    @property
    def P(self) -> int:
        """Height of the output."""
        return (self.H + 2 * self.padding[0] - self.R) // self.stride[0] + 1

    @property
    def Q(self) -> int:
        """Width of the output."""
        return (self.W + 2 * self.padding[1] - self.S) // self.stride[1] + 1

    @property
    def outputs(self) -> int:
        """Elements of what the op writes; of dy for the weight gradient."""
        if self.op == "backward_input":
            return self.N * self.C * self.H * self.W
        return self.N * self.output_channels * self.P * self.Q

    @property
    def multiply_adds(self) -> int:
        """Of the call, padding counted in."""
        depth = self.R * self.S * self.C // (self.groups or self.C)
        return self.N * self.output_channels * self.P * self.Q * depth

    @property
    def least_bytes(self) -> int:
        """Every operand once."""
        activations = self.N * (self.C * self.H * self.W + self.output_channels * self.P * self.Q)
        filter_elements = self.output_channels * self.R * self.S * self.C // (self.groups or self.C)
        return (activations + filter_elements) * DTYPES[self.dtype]

    @property
    def name(self) -> str:
        """Such as ``3x3 s2 64 112x112``, or ``3x3 s2 g32 128->256 56x56``."""
        stride = "" if self.stride == (1, 1) else f" s{self.stride[0]}"
        groups = f" g{self.groups}" if self.groups > 1 else ""
        channels = f"{self.C}" if self.is_depthwise else f"{self.C}->{self.K}"
        return f"{self.R}x{self.S}{stride}{groups} {channels} {self.H}x{self.W}"


@dataclass(frozen=True)
class Block:
    """A depthwise-separable block, channels_last: a depthwise convolution without multiplier, and a 1x1 convolution.

    Both have biases and relu6; float32 may be rounded to TF32.
    """

    depthwise: Call
    #: Channels of the output.
    outputs: int

    @property
    def dtype(self) -> str:
        """Of all operands."""
        return self.depthwise.dtype

    @property
    def input_bytes(self) -> int:
        """Of the input."""
        d = self.depthwise
        return d.N * d.C * d.H * d.W * DTYPES[d.dtype]

    @property
    def middle_bytes(self) -> int:
        """Of the tensor between the convolutions."""
        return self.depthwise.outputs * DTYPES[self.dtype]

    @property
    def output_bytes(self) -> int:
        """Of the output and the 1x1 filter."""
        d = self.depthwise
        return (d.N * d.P * d.Q + d.C) * self.outputs * DTYPES[self.dtype]

    @property
    def name(self) -> str:
        """Such as ``3x3 s2 64 -> 128 112x112``."""
        head, size = self.depthwise.name.rsplit(" ", 1)
        return f"{head} -> {self.outputs} {size}"


@dataclass(frozen=True)
class Plan:
    """A launch config and its launches."""

    config: str
    launches: tuple[Launch, ...]


def _strides(layout: str, c: int, h: int, w: int) -> tuple[int, int, int, int]:
    return (c * h * w, h * w, w, 1) if layout == "nchw" else (c * h * w, 1, w * c, c)


def _cuda_headers() -> Path:
    from tests.emulator import build

    headers = build.cuda_headers()
    if headers is None:
        raise ToolMissingError("cuda_fp16.h was not found: install a CUDA toolkit or `pip install nvidia-cuda-runtime`")
    return headers


def _sources() -> list[Path]:
    """Kernels and planners. The emulator's functions that kernels call are missing, as no kernel runs."""
    kernels = [path for suffix in ("cu", "cpp") for path in CUDA_SOURCES.glob(f"*.{suffix}")]
    return [HERE / "recorder" / "recorder.cpp", *sorted(kernels)]


def _compile(source: Path, flags: Sequence[str]) -> Path:
    key = content_key([source, HERE / "recorder" / "emulator.h"], *flags)
    target = BUILD / "recorder" / f"{source.stem}-{key}.o"
    target.parent.mkdir(parents=True, exist_ok=True)
    with exclusively(target.parent, source.stem):
        if not target.exists():
            for stale in target.parent.glob(f"{source.stem}-*.o"):
                stale.unlink(missing_ok=True)
            run_tool(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


@functools.cache
def _library() -> tuple[ctypes.CDLL, dict[int, str]]:
    """Return the recorder, and the mangled names of its functions by their offset."""
    includes = [HERE / "recorder", _EMULATOR, CUDA_SOURCES]
    flags = ["-std=c++20", "-O0", "-fPIC", "-fvisibility=hidden", "-w", *(f"-I{path}" for path in includes)]
    flags += ["-isystem", str(_cuda_headers())]
    with ThreadPoolExecutor(jobs()) as pool:
        objects = list(pool.map(lambda source: _compile(source, flags), _sources()))
    library = BUILD / "recorder" / f"recorder-{content_key(objects)}.so"
    with exclusively(library.parent, "library"):
        if not library.exists():
            for stale in library.parent.glob("recorder-*.so"):
                stale.unlink(missing_ok=True)
            run_tool(["g++", "-shared", "-Wl,-z,lazy", "-o", str(library), *map(str, objects), "-ldl"])
    names = {}
    symbols = subprocess.run(["nm", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    for line in symbols.stdout.splitlines():
        address, kind, name = line.split(" ", 2)
        if kind in "tTwW":
            names[int(address, 16)] = name
    loaded = ctypes.CDLL(str(library), mode=0x1)  # RTLD_LAZY
    loaded.cnnext_record.restype = ctypes.c_char_p
    loaded.cnnext_record.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_int64), ctypes.c_int]
    loaded.cnnext_record_separable.restype = ctypes.c_char_p
    loaded.cnnext_record_separable.argtypes = [ctypes.POINTER(ctypes.c_int64), ctypes.c_int]
    return loaded, names


def plan(call: Call, architecture: Architecture, choice: int = 0) -> Plan | None:
    """Return what a call launches with the planner's config number `choice`; None if there are not so many.

    Raises:
        ToolMissingError: CUDA's headers are not installed.
        RuntimeError: g++ failed.
    """
    library, names = _library()
    values = _problem(call, architecture)
    number = OPS.index(call.op) + (0 if call.is_depthwise else len(OPS))
    return _parse(library.cnnext_record(number, (ctypes.c_int64 * len(values))(*values), choice), names)


def plan_separable(block: Block, architecture: Architecture, choice: int = 0) -> Plan | None:
    """Return what a block launches with the planner's config number `choice`; None if there are not so many.

    Raises:
        ToolMissingError: CUDA's headers are not installed.
        RuntimeError: g++ failed.
    """
    library, names = _library()
    values = _problem(block.depthwise, architecture)
    values += [block.outputs, block.dtype == "float32", architecture.l2_bytes]
    values += [round(architecture.clock_ghz * 1e3), round(architecture.copy_bandwidth / 1e9)]
    return _parse(library.cnnext_record_separable((ctypes.c_int64 * len(values))(*values), choice), names)


def _problem(call: Call, architecture: Architecture) -> list[int]:
    """A convolution on a device, as the recorder takes it."""
    k = call.output_channels
    values = [call.N, call.C, call.H, call.W, k, call.R, call.S, call.P, call.Q, call.groups or call.C]
    values += [*call.stride, *call.padding, 1, 1]
    values += [*_strides(call.layout, call.C, call.H, call.W), *_strides(call.layout, k, call.P, call.Q)]
    values += [LAYOUTS.index(call.layout), list(DTYPES).index(call.dtype)]
    values += [architecture.multiprocessors, architecture.max_warps * WARP]
    return [*values, architecture.shared_bytes, architecture.shared_bytes_per_block]


def _parse(said: bytes, names: dict[int, str]) -> Plan | None:
    text = said.decode()
    if not text:
        return None
    config, *lines = text.splitlines()
    launches = []
    for line in lines:
        _, offset, *numbers, parameters = line.split(" ")
        gx, gy, gz, bx, by, bz, shared = map(int, numbers)
        name = names[int(offset)]
        launches.append(Launch(name, (gx, gy, gz), (bx, by, bz), shared, bytes.fromhex(parameters)))
    return Plan(config.removeprefix("config "), tuple(launches))
