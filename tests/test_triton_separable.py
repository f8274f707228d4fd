"""The fused depthwise -> 1x1 block in Triton: values to the bit, both epilogues, and when it is used at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import cnnext
from cnnext.backends import triton as backend
from tests.cases import LAYOUTS, generator
from tests.reference import activate, upcast
from tests.triton_cases import DEVICE, DTYPES, poisoned_memory

pytestmark = pytest.mark.skipif(backend.unavailable() is not None, reason=f"Triton: {backend.unavailable()}")
if backend.INTERPRETED and backend.unavailable() is None:
    from tests.triton_interpreter import repair

    repair()

# input, middle channels, outputs, filter, geometry
SHAPES: dict[str, tuple[Any, ...]] = {
    "3x3": ((2, 18, 5, 4), 18, 33, (3, 3), {"padding": 1}),
    "s2x3_multiplier": ((1, 3, 7, 6), 9, 5, (3, 2), {"stride": (2, 3), "padding": (2, 1)}),
    "dilated_beyond_a_tile": ((3, 2, 9, 10), 2, 130, (2, 2), {"dilation": (1, 2)}),
    "wide_filter": ((1, 2, 3, 9), 2, 3, (2, 9), {"padding": (0, 4)}),
}


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    with poisoned_memory():
        yield


def _operands(name: str, dtype: torch.dtype, layout: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Small integers, so that both halves are exact."""
    size, middle, outputs, kernel, geometry = SHAPES[name]
    seed = generator(f"separable/{name}")
    shapes = (size, (middle, 1, *kernel), (outputs, middle, 1, 1), (middle,), (outputs,))
    operands = [torch.randint(-2, 3, shape, generator=seed).to(dtype) for shape in shapes]
    return [LAYOUTS[layout](operands[0]).to(DEVICE), *(t.to(DEVICE) for t in operands[1:])], geometry


def _expected(operands: list[Any], geometry: dict[str, Any], first: str | None, second: str | None) -> torch.Tensor:
    x, first_weight, second_weight, first_bias, second_bias = map(upcast, operands)
    middle = activate(torch.conv2d(x, first_weight, first_bias, groups=x.size(1), **geometry), first)
    middle = upcast(middle.to(operands[0].dtype))
    return activate(torch.conv2d(middle, second_weight, second_bias), second).to(operands[0].dtype)


def _fused(operands: list[Any], geometry: dict[str, Any], first: str | None, second: str | None) -> torch.Tensor:
    return cnnext.functional.separable_conv2d(
        *operands, **geometry, depthwise_activation=first, pointwise_activation=second, backend="triton"
    )


@pytest.fixture
def fusions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the fused operator gave in this test, one entry a call that was fused."""
    results: list[Any] = []
    original = backend.run_separable

    def record(*args: Any) -> Any:
        result = original(*args)
        if result is not None:
            results.append(result)
        return result

    monkeypatch.setattr(backend, "run_separable", record)
    return results


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc_slice"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_integers_to_the_bit(name: str, dtype: torch.dtype, layout: str, fusions: list[Any]) -> None:
    operands, geometry = _operands(name, dtype, layout)
    for used, first, second in (
        (operands, "relu6", "relu"),
        ([*operands[:3], None, None], None, "relu6"),
    ):
        actual = _fused(used, geometry, first, second)
        torch.testing.assert_close(actual.cpu(), _expected(used, geometry, first, second), rtol=0, atol=0)
        assert (layout != "nchw") == actual.is_contiguous(memory_format=torch.channels_last)
    assert len(fusions) == 2


def test_an_activation_of_zero_that_is_not_zero(fusions: list[Any]) -> None:
    """Lanes beyond the last middle channel hold sigmoid(0)."""
    operands, geometry = _operands("s2x3_multiplier", torch.float32, "nchw")
    actual = _fused(operands, geometry, "sigmoid", "tanh")
    torch.testing.assert_close(actual.cpu(), _expected(operands, geometry, "sigmoid", "tanh"), rtol=1e-5, atol=1e-6)
    assert len(fusions) == 1


def test_offsets_of_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from cnnext.triton_kernels import problem

    monkeypatch.setattr(problem, "_NARROW_LIMIT", 0)
    operands, geometry = _operands("s2x3_multiplier", torch.float16, "nhwc")
    torch.testing.assert_close(
        _fused(operands, geometry, None, None).cpu(), _expected(operands, geometry, None, None), rtol=0, atol=0
    )


def test_what_is_not_fused_runs_apart(fusions: list[Any]) -> None:
    operands, geometry = _operands("3x3", torch.float32, "nchw")
    apart = [operands[0].clone().requires_grad_(), *operands[1:]]
    assert _fused(apart, geometry, None, None).requires_grad
    wide = [t.repeat(8, *[1] * (t.dim() - 1)) if index in (2, 4) else t for index, t in enumerate(operands)]
    assert _fused(wide, geometry, None, None).shape[1] == 8 * 33
    with pytest.raises(RuntimeError):
        _fused([operands[0], operands[1], operands[2][:, :-1], *operands[3:]], geometry, None, None)
    with pytest.raises(RuntimeError):
        _fused([operands[0], operands[1].half(), *operands[2:]], geometry, None, None)
    with pytest.raises(ValueError, match="unknown activation"):
        _fused(operands, geometry, None, "swish2")
    assert fusions == []


def test_an_unbatched_input(fusions: list[Any]) -> None:
    operands, geometry = _operands("3x3", torch.float32, "nchw")
    whole = _fused(operands, geometry, None, None)
    one = _fused([operands[0][1], *operands[1:]], geometry, None, None)
    torch.testing.assert_close(one, whole[1], rtol=0, atol=0)
    assert len(fusions) == 2


def test_schema_and_fake() -> None:
    from cnnext.triton_kernels.operators import separable_conv2d

    operands, _ = _operands("3x3", torch.float32, "nhwc")
    x, first_weight, second_weight, first_bias, second_bias = operands
    args = (x, first_weight, first_bias, second_weight, second_bias, [1, 1], [1, 1], [1, 1], 2, 2)
    torch.library.opcheck(separable_conv2d, args, test_utils=("test_schema", "test_faketensor"))
