"""Calls the CPU kernels themselves, past PyTorch, with every byte around their operands under guard.

The kernels are plain C++ functions in a table (csrc/cpu/kernels.h); this module mirrors the table and its arguments
with ctypes. Operands lie flush against pages that may not be touched, so reading or writing past them is a segmentation
fault, and outputs lie in memory of which every bit is set, which is NaN in every dtype.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.cases import Case

I64 = ctypes.c_int64
BODY = ctypes.CFUNCTYPE(None, I64, I64, ctypes.c_void_p)
FOR_FUNCTION = ctypes.CFUNCTYPE(None, I64, I64, I64, BODY, ctypes.c_void_p)
DTYPE_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
LAYOUT_NUMBERS = {"nchw": 0, "nhwc": 1}
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_PAGE = mmap.PAGESIZE
_SYMBOLS = ("cnnext_cpu_kernels_for", "_ZN6cnnext3cpu11kernels_forEPKc")


class Strides4(ctypes.Structure):
    _fields_ = [(name, I64) for name in "nchw"]


class ConvParams(ctypes.Structure):
    """csrc/conv_params.h."""

    _fields_ = [
        *((name, I64) for name in ("N", "C", "H", "W", "K", "R", "S", "P", "Q", "groups")),
        *((name, I64) for name in ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")),
        ("x_strides", Strides4),
        ("y_strides", Strides4),
        ("layout", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("activation", ctypes.c_int32),
    ]


class Parallel(ctypes.Structure):
    """csrc/cpu/parallel.h."""

    _fields_ = [("parallel_for", FOR_FUNCTION), ("num_threads", ctypes.c_int)]


class OpKernels(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("forward", "backward_input", "backward_weight")]


class FusedKernels(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("conv", "add_residual", "separable")]


class KernelTable(ctypes.Structure):
    _fields_ = [
        ("isa", ctypes.c_char_p),
        ("depthwise", OpKernels),
        ("grouped", OpKernels),
        ("pointwise", OpKernels),
        ("fused", FusedKernels),
    ]


def load_table(path: Path, isa: str) -> KernelTable | None:
    """The kernels that the shared object at `path` has for `isa`, or None if this machine cannot run them."""
    library = ctypes.CDLL(str(path))
    symbol = next((name for name in _SYMBOLS if hasattr(library, name)), None)
    if symbol is None:
        raise RuntimeError(f"{path} exports no {_SYMBOLS[0]}")
    function = getattr(library, symbol)
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.POINTER(KernelTable)
    table = function(isa.encode())
    return table.contents if table else None


# --- Command line of the sweeps ---------------------------------------------------------------------------------------

NOT_ON_THIS_MACHINE = 77


def sweep_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that `start_sweep` reads, and ``--stop-at-first``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--isa", required=True, choices=("avx512", "avx2", "baseline"))
    parser.add_argument("--library", type=Path, help="shared object with the kernels (default: the installed one)")
    parser.add_argument("--at-start", action="store_true", help="operands begin, rather than end, at a forbidden page")
    parser.add_argument("--stop-at-first", action="store_true")
    return parser


def start_sweep(options: argparse.Namespace) -> KernelTable:
    """Readies the process, and gives the kernels that the options name; ends it if the machine cannot run them."""
    faulthandler.enable()
    torch.set_num_threads(1)
    path = options.library
    if path is None:
        from cnnext import _extension

        path = _extension.cpu.path
    table = load_table(path, options.isa)
    if table is None:
        print(f"this machine does not have {options.isa}")
        sys.exit(NOT_ON_THIS_MACHINE)
    return table


# --- Ways to split the work: any that parallel.h allows, whatever pool a machine has. --------------------------------


def _in_chunks(begin: int, end: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, end)) for start in range(begin, end, size)]


def _finest_last_first(begin: int, end: int, grain: int) -> list[tuple[int, int]]:
    return _in_chunks(begin, end, max(1, grain))[::-1]


def _three_uneven(begin: int, end: int, grain: int) -> list[tuple[int, int]]:
    return _in_chunks(begin, end, max(1, grain, (end - begin) * 2 // 5))


_SPLITS: dict[str, tuple[int, Callable[[int, int, int], list[tuple[int, int]]]]] = {
    "one_thread": (1, lambda begin, end, grain: [(begin, end)]),
    "finest_last_first": (64, _finest_last_first),
    "three_uneven": (3, _three_uneven),
}
SPLITS = tuple(_SPLITS)


def _make_parallel(split: str) -> Parallel:
    threads, chunks = _SPLITS[split]

    def parallel_for(begin: int, end: int, grain: int, body: Callable[..., None], context: int) -> None:
        for chunk in chunks(begin, end, grain):
            body(*chunk, context)

    return Parallel(FOR_FUNCTION(parallel_for), threads)


PARALLEL = {split: _make_parallel(split) for split in SPLITS}


# --- Memory under guard ----------------------------------------------------------------------------------------------


class Arena:
    """Pages between two that may not be touched, every bit set; one tensor at a time lies in it, at either end."""

    def __init__(self, size: int) -> None:
        self._size = -(-size // _PAGE) * _PAGE
        self._map = mmap.mmap(-1, self._size + 2 * _PAGE)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)[_PAGE:-_PAGE]
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for address in (self._bytes.data_ptr() - _PAGE, self._bytes.data_ptr() + self._size):
            if libc.mprotect(address, _PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed")

    def place(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, at_end: bool) -> torch.Tensor:
        """A tensor in freshly poisoned memory."""
        self._bytes.fill_(0xFF)
        elements = self._bytes.view(dtype)
        start = elements.numel() - extent(shape, strides) if at_end else 0
        return elements.as_strided(shape, strides, elements.storage_offset() + start)

    def untouched_beside(self, tensor: torch.Tensor) -> bool:
        """Whether every bit that is not of `tensor`, which was placed here, is still set."""
        integers = _INTEGERS[tensor.itemsize]
        rest = self._bytes.view(integers).clone()
        offset = tensor.storage_offset() - _PAGE // tensor.itemsize
        rest.as_strided(tensor.shape, tensor.stride(), offset).fill_(-1)
        return bool((rest == -1).all())


def extent(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first of a tensor to its last, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def dense_strides(shape: Sequence[int], layout: str, gap: int = 0) -> tuple[int, int, int, int]:
    """Strides of a tensor (N, C, H, W) in `layout`, with `gap` elements between rows, planes and images."""
    _, c, h, w = shape
    if layout == "nhwc":
        pixel = c + gap
        row = w * pixel + gap
        return h * row + gap, 1, row, pixel
    row = w + gap
    plane = h * row + gap
    return c * plane + gap, plane, row, 1


@dataclass
class Runner:
    """Runs the kernels of one table on operands placed under guard."""

    table: KernelTable
    at_end: bool = True
    _arenas: dict[tuple[str, int], Arena] = field(default_factory=dict)

    def _place_in_arena(self, name: str, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> _Placed:
        """In the smallest arena called `name` that has room: poisoning a large one takes longer than most kernels."""
        size = next(
            size for size in (1 << 14, 1 << 17, 1 << 20, 1 << 23) if extent(shape, strides) * dtype.itemsize <= size
        )
        arena = self._arenas.get((name, size)) or self._arenas.setdefault((name, size), Arena(size))
        return _Placed(arena, arena.place(shape, strides, dtype, self.at_end))

    def _kernel(self, family: str, direction: str, pointers: int) -> Callable[..., None]:
        address = getattr(getattr(self.table, family), direction)
        arguments = [ctypes.POINTER(ConvParams), ctypes.POINTER(Parallel), *[ctypes.c_void_p] * pointers]
        return ctypes.CFUNCTYPE(None, *arguments)(address)

    def _params(self, case: Case, dtype: torch.dtype, layout: str, gap: int, activation: int = 0) -> ConvParams:
        p, q = case.output_shape[2:]
        return ConvParams(
            *case.input_shape, case.k, case.r, case.s, p, q, case.groups, *case.stride, *case.padding, *case.dilation,
            Strides4(*dense_strides(case.input_shape, layout, gap)),
            Strides4(*dense_strides(case.output_shape, layout, gap)),
            LAYOUT_NUMBERS[layout], DTYPE_NUMBERS[dtype], activation,
        )  # fmt: skip

    def _place(self, name: str, values: torch.Tensor | None, strides: Sequence[int]) -> torch.Tensor | None:
        if values is None:
            return None
        return self._place_in_arena(name, values.shape, strides, values.dtype).tensor.copy_(values)

    def forward(
        self,
        family: str,
        case: Case,
        layout: str,
        x: torch.Tensor,
        w: torch.Tensor,
        bias: torch.Tensor | None,
        activation: int = 0,
        split: str = "one_thread",
        gap: int = 0,
    ) -> torch.Tensor:
        """The output of the forward kernel; fails if anything but the output was written."""
        params = self._params(case, x.dtype, layout, gap, activation)
        operands = [
            self._place("x", x, dense_strides(case.input_shape, layout, gap)),
            self._place("w", w, w.contiguous().stride()),
            self._place("bias", bias, (1,)),
        ]
        output = self._place_in_arena("y", case.output_shape, dense_strides(case.output_shape, layout, gap), x.dtype)
        self._call(family, "forward", params, split, operands, [output])
        return output.tensor.clone()

    def backward_input(
        self,
        family: str,
        case: Case,
        layout: str,
        grad: torch.Tensor,
        w: torch.Tensor,
        split: str = "one_thread",
        gap: int = 0,
    ) -> torch.Tensor:
        """The input gradient; fails if anything else was written."""
        params = self._params(case, w.dtype, layout, gap)
        operands = [
            self._place("y", grad, dense_strides(case.output_shape, layout, gap)),
            self._place("w", w, w.contiguous().stride()),
        ]
        output = self._place_in_arena("x", case.input_shape, dense_strides(case.input_shape, layout, gap), w.dtype)
        self._call(family, "backward_input", params, split, operands, [output])
        return output.tensor.clone()

    def backward_weight(
        self,
        family: str,
        case: Case,
        layout: str,
        grad: torch.Tensor,
        x: torch.Tensor,
        wanted: tuple[bool, bool] = (True, True),
        split: str = "one_thread",
        gap: int = 0,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The filter and the bias gradient, each only if `wanted`; fails if anything else was written."""
        params = self._params(case, x.dtype, layout, gap)
        operands = [
            self._place("y", grad, dense_strides(case.output_shape, layout, gap)),
            self._place("x", x, dense_strides(case.input_shape, layout, gap)),
        ]
        shapes = {"w": case.weight_shape, "bias": (case.k,)}
        outputs = [
            self._place_in_arena(name, shape, torch.empty(shape, device="meta").stride(), x.dtype) if want else None
            for (name, shape), want in zip(shapes.items(), wanted, strict=True)
        ]
        self._call(family, "backward_weight", params, split, operands, outputs)
        weight, bias = (None if output is None else output.tensor.clone() for output in outputs)
        return weight, bias

    def _call(
        self,
        family: str,
        direction: str,
        params: ConvParams,
        split: str,
        operands: Sequence[torch.Tensor | None],
        outputs: Sequence[_Placed | None],
    ) -> None:
        before = [None if t is None else t.clone() for t in operands]
        tensors = [*operands, *(None if output is None else output.tensor for output in outputs)]
        pointers = [None if t is None else t.data_ptr() for t in tensors]
        kernel = self._kernel(family, direction, len(pointers))
        kernel(ctypes.byref(params), ctypes.byref(PARALLEL[split]), *pointers)
        for output in outputs:
            if output is not None:
                assert output.arena.untouched_beside(output.tensor), f"{direction} wrote beside its output"
        for operand, copy in zip(operands, before, strict=True):
            assert operand is None or torch.equal(_bits(operand), _bits(copy)), f"{direction} changed an operand"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.itemsize])


@dataclass
class _Placed:
    arena: Arena
    tensor: torch.Tensor
