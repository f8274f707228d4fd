"""The problems that the Triton kernels are tried on, and the checks; shared by tests/test_triton.py and its mutants.

Triton's interpreter takes a millisecond for what a GPU does in a nanosecond, so the problems are tiny; each is there
for an edge: of a tile, of a path that the launch chooses, of the geometry.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

import cnnext
from cnnext.backends import triton as backend
from tests import checking
from tests.cases import LAYOUTS, Case, apply_op, case, integer_operands, random_grad
from tests.reference import upcast

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = "cpu" if backend.INTERPRETED else "cuda"


def _depthwise(name: str, size: tuple[int, int, int, int], kernel: object, multiplier: int = 1, **rest: object) -> Case:
    return case(name, size, size[1] * multiplier, kernel, groups=size[1], **rest)  # type: ignore[arg-type]


CASES: dict[str, tuple[Case, ...]] = {
    "depthwise": (
        _depthwise("dw_3x3", (2, 5, 5, 4), 3, padding=1),
        _depthwise("dw_s2", (2, 3, 6, 5), 3, stride=2, padding=1),
        _depthwise("dw_s3x2_dilated", (1, 2, 9, 8), (2, 3), stride=(3, 2), padding=(2, 3), dilation=(2, 1)),
        _depthwise("dw_multiplier_3", (1, 2, 4, 5), 2, multiplier=3, padding=1),
        _depthwise("dw_wide_filter", (1, 2, 3, 9), (2, 9), padding=(0, 4)),
        _depthwise("dw_many_taps", (1, 2, 6, 7), 6, padding=2),
        _depthwise("dw_channels_beyond_a_tile", (1, 70, 5, 4), 2),
        _depthwise("dw_channels_by_vectors", (1, 80, 6, 7), 2, padding=(1, 0)),
        _depthwise("dw_pixels_beyond_a_tile_and_a_part", (3, 3, 15, 13), 3, padding=1),
        _depthwise("dw_padding_beyond_filter", (1, 3, 2, 3), 2, padding=(3, 4), stride=2),
    ),
    "grouped": (
        case("dense", (2, 18, 4, 5), 17, 3, padding=1),
        case("dense_s2", (1, 35, 5, 4), 33, 3, stride=2, padding=1),
        case("dense_s3_dilated", (1, 16, 7, 8), 4, 3, stride=3, padding=2, dilation=2),
        case("stem", (2, 3, 7, 6), 20, 3, stride=2, padding=1),
        case("stem_s2x3_dilated", (1, 3, 8, 9), 18, (3, 3), stride=(2, 3), padding=(2, 3), dilation=(1, 2)),
        case("pixels_beyond_a_tile_and_a_part", (3, 4, 14, 14), 5, 2, padding=1),
        case("wide_groups", (1, 34, 4, 4), 40, 2, padding=1, groups=2),
        case("few_to_many", (1, 6, 4, 4), 34, 2, groups=2),
        case("groups_of_4", (2, 12, 5, 4), 12, 3, padding=1, groups=3),
        case("groups_of_4_s2", (1, 8, 6, 5), 8, 3, stride=2, padding=1, groups=2),
        case("groups_of_2_to_3", (1, 14, 5, 6), 21, (2, 3), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=7),
        case("groups_of_17_to_5", (1, 34, 4, 3), 10, 2, groups=2),
        case("many_groups", (1, 70, 3, 4), 70, 2, groups=35),
        case("filter_larger_than_image", (1, 3, 2, 2), 4, 4, padding=2),
    ),
    "pointwise": (
        case("pw", (2, 19, 3, 5), 33, 1),
        case("pw_deep", (1, 70, 2, 2), 5, 1),
        case("pw_pixels_beyond_a_tile", (3, 2, 15, 13), 3, 1),
        case("pw_s2_padded", (2, 5, 5, 6), 4, 1, stride=2, padding=1),
        case("pw_one_pixel", (1, 7, 1, 1), 9, 1),
    ),
}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is filled with NaN by torch, so an element that no kernel writes is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def check_infinities(op: str, case: Case, layout: str) -> None:
    """An infinity spoils what F.conv2d lets it spoil, and nothing else: no other pixel, channel or group."""
    x, w, bias = (t.to(DEVICE) for t in integer_operands(case, torch.float32))
    w = torch.where(w == 0, 1.0, w)  # infinity times zero is another matter
    x[0, 0, 0, 0] = torch.inf
    x[-1, -1, -1, -1] = -torch.inf
    actual = apply_op(op, case, LAYOUTS[layout](x), w, bias, backend="triton")
    operands = [upcast(t) for t in (x, w, bias)]
    expected = torch.conv2d(*operands, case.stride, case.padding, case.dilation, case.groups)
    torch.testing.assert_close(upcast(actual), expected, rtol=0, atol=0, equal_nan=True)


def check_all_formats(op: str, case: Case) -> None:
    """The gradient operators obey `channels_last`, whatever the formats of their operands."""
    from cnnext.triton_kernels.operators import FAMILIES

    family = FAMILIES[op]
    geometry = (case.stride, case.padding, case.dilation, *((case.groups,) if family.has_groups else ()))
    x, w, _ = integer_operands(case, torch.float32)
    grad = random_grad(case, torch.float32, integers=True)
    exact = checking.exact_results(case)
    for layout, channels_last in (("nchw", True), ("nhwc_slice", False)):
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        x, grad = LAYOUTS[layout](x), LAYOUTS["nhwc" if layout == "nchw" else "nchw"](grad)
        operands = (grad.to(DEVICE), x.to(DEVICE), w.to(DEVICE))
        grad_input = family.backward_input(operands[0], operands[2], x.shape, *geometry, channels_last)
        grad_weight, grad_bias = family.backward_weight(*operands[:2], w.shape, *geometry, False, channels_last)
        assert grad_input.is_contiguous(memory_format=memory_format)
        assert grad_weight.is_contiguous(memory_format=memory_format)
        assert grad_bias.shape == (0,)
        checking.assert_same_bits(grad_input, exact.grad_input, "input gradient")
        checking.assert_same_bits(grad_weight, exact.grad_weight, "weight gradient")


# ------------------------------------------------------------------------------------------------------- guarded memory

#: The arguments of kernels that are written.
RESULTS = ("output", "partials", "grad_weight", "grad_bias")

# One problem for each path that a launch may take.
_GUARDED = (
    "dw_s2",
    "dw_channels_by_vectors",
    "dense_s2",
    "stem",
    "few_to_many",
    "groups_of_2_to_3",
    "many_groups",
    "pw",
)


def guarded(tensor: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy with the same strides, the last (or first) byte of which lies beside a page that may not be touched."""
    page = mmap.PAGESIZE
    elements = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    taken = elements * tensor.element_size()
    room = -(-taken // page) * page
    memory = mmap.mmap(-1, room + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for guard in (start, start + page + room):
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
            raise OSError("mprotect failed")
    offset = page + (room - taken if at_end else 0)
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=elements, offset=offset)
    return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)


@contextmanager
def guarded_launches() -> Iterator[None]:
    """Every tensor that a kernel gets is guarded: operands, results, workspaces. Who reads or writes beside it dies."""
    from cnnext.triton_kernels import launching

    def run(kernel: Any, candidates: Any, programs: Any, arguments: dict[str, Any]) -> None:
        tensors = {id(value): value for value in arguments.values() if isinstance(value, torch.Tensor)}
        for at_end in (True, False):
            copies = {key: guarded(tensor, at_end) for key, tensor in tensors.items()}
            run_as_it_was(kernel, candidates, programs, {n: copies.get(id(v), v) for n, v in arguments.items()})
        for key in {id(arguments[name]) for name in RESULTS if name in arguments}:
            tensors[key].copy_(copies[key])

    run_as_it_was = launching.run
    with mock.patch.object(launching, "run", run):
        yield


def check_guarded(op: str, case: Case, layout: str) -> None:
    """Nothing beside the operands, results and workspaces is touched. A GPU might not say so; here the process dies."""
    with guarded_launches():
        checking.check_integer_values(op, case, torch.float32, layout, backend="triton")


def check_guarded_separable(layout: str) -> None:
    """The same for the fused block, whose pixels, middle channels and outputs are all fewer than a tile has."""
    shapes = ((2, 5, 4, 5), (5, 1, 3, 3), (7, 5, 1, 1), (5,), (7,))
    x, first, second, first_bias, second_bias = (torch.randint(-2, 3, shape).float() for shape in shapes)
    middle = torch.conv2d(*map(upcast, (x, first, first_bias)), padding=1, groups=5)
    expected = torch.conv2d(middle, upcast(second), upcast(second_bias))
    with guarded_launches():
        actual = cnnext.functional.separable_conv2d(
            LAYOUTS[layout](x), first, second, first_bias, second_bias, padding=1, backend="triton"
        )
    checking.assert_same_bits(actual, expected.float(), "separable")


def main() -> None:
    """`python -m tests.triton_cases`: problems of every kernel on guarded memory, in the interpreter."""
    from tests.triton_interpreter import repair

    repair()
    for op, cases in CASES.items():
        for problem in cases:
            if problem.name in _GUARDED:
                for layout in ("nchw", "nhwc"):
                    print(op, problem, layout, flush=True)
                    check_guarded(op, problem, layout)
    for layout in ("nchw", "nhwc"):
        print("separable", layout, flush=True)
        check_guarded_separable(layout)


if __name__ == "__main__":
    main()
