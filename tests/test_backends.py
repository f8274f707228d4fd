"""Choosing a backend: by cnnext, by name for one call, by name for all; and the reasons given."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import cnnext
from cnnext import backends, functional
from tests.cases import CASES, apply_op, random_operands

NAMES = ("cuda", "triton", "cpu", "aten")


def _operands(dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, 4, 6, 6, dtype=dtype, device=device), torch.ones(4, 1, 3, 3, dtype=dtype, device=device)


def _lines(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


def test_available_lists_names_in_order() -> None:
    names = backends.available()
    assert names[-1] == "aten"
    assert "cpu" in names
    assert set(names) <= set(NAMES)
    assert ("cuda" in names) <= torch.cuda.is_available()
    assert names is not backends.available(), "a caller may change the list"


def test_explain_names_the_choice_and_every_reason() -> None:
    x, w = _operands()
    lines = _lines(backends.explain("depthwise_conv2d", x, w, padding=1))
    assert lines["cpu"].startswith("chosen")
    assert lines["aten"] == "could run this, but an earlier one is chosen"
    if "cuda" in lines and not torch.cuda.is_available():
        assert lines["cuda"].startswith("cannot run this: ")
        assert len(lines["cuda"]) > len("cannot run this: ") + 5
    assert list(lines)[-1] == "aten"


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64], ids=str)
def test_explain_says_what_the_kernels_do_not_take(dtype: torch.dtype) -> None:
    for op in ("depthwise_conv2d", "grouped_conv2d", "pointwise_conv2d"):
        x, w = torch.ones(1, 4, 6, 6, dtype=dtype), torch.ones(4, 4 if op[0] != "d" else 1, 1, 1, dtype=dtype)
        lines = _lines(backends.explain(op, x, w))
        assert lines["aten"] == "chosen"
        assert str(dtype) in lines["cpu"]


def test_explain_agrees_with_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever explain calls chosen is what a call runs."""
    ran: list[str] = []
    for backend in backends._BACKENDS.values():
        original = backend.run
        monkeypatch.setattr(
            backend, "run", lambda call, name=backend.name, original=original: (ran.append(name), original(call))[1]
        )
    for dtype in (torch.float32, torch.float16, torch.int64, torch.complex64):
        x, w = _operands(dtype)
        for backend in (None, "aten"):
            ran.clear()
            cnnext.functional.depthwise_conv2d(x, w, backend=backend)
            lines = _lines(backends.explain("depthwise_conv2d", x, w, backend=backend))
            assert [name for name, verdict in lines.items() if verdict == "chosen"] == ran


def test_explain_of_a_separable_block_says_how_many_kernels() -> None:
    x, w = _operands()
    pointwise = torch.ones(8, 4, 1, 1)
    lines = _lines(backends.explain("separable_conv2d", x, w, pointwise, padding=1))
    assert lines["cpu"].startswith("chosen; one kernel")
    trained = pointwise.clone().requires_grad_()
    assert "two calls, because a gradient" in backends.explain("separable_conv2d", x, w, trained, padding=1)
    lines = _lines(backends.explain("separable_conv2d", x, w, pointwise, backend="aten"))
    assert lines["aten"] == "chosen; two calls, because it has no kernel for the block"
    assert lines["cpu"].startswith("not asked")


def test_triton_explains_which_separable_blocks_it_fuses() -> None:
    x, w = _operands()
    call, *_ = functional.make_separable_call(x, w, torch.ones(8, 4, 1, 1))
    assert backends.triton.explain_separable(call, torch.ones(256, 4, 1, 1)).startswith("one kernel")
    assert backends.triton.explain_separable(call, torch.ones(257, 4, 1, 1)).startswith("two kernels")


def test_cuda_is_asked_about_a_separable_block_in_the_order_of_its_interface() -> None:
    """`cnnext_cuda_explain_separable` takes numbers alone, and no GPU is here to answer."""
    x = torch.ones(2, 8, 6, 5, dtype=torch.float16).to(memory_format=torch.channels_last)
    w, pointwise = torch.ones(8, 1, 3, 5, dtype=torch.float16), torch.ones(16, 8, 1, 1, dtype=torch.float16)
    call, *_ = functional.make_separable_call(x, w, pointwise, stride=(2, 1), padding=(1, 2), dilation=(3, 1))
    values = list(backends.cuda._separable_values(call, pointwise, 7))
    geometry = [2, 1, 1, 2, 3, 1]
    assert values[:-1] == [7, 2, 8, 6, 5, 8, 3, 5, *geometry, 16, 240, 1, 40, 8, 1, 2, 16]
    # An input that the kernels would copy is described as the copy.
    turned = torch.ones(2, 8, 6, 5, dtype=torch.float16).transpose(2, 3)
    call, *_ = functional.make_separable_call(turned, w, pointwise)
    assert list(backends.cuda._separable_values(call, pointwise, 0))[15:20] == [240, 30, 6, 1, 0]


def test_explain_of_an_unknown_op() -> None:
    with pytest.raises(ValueError, match=r"conv3d.*depthwise_conv2d"):
        backends.explain("conv3d", *_operands())


def test_use_as_a_context_and_as_a_setter() -> None:
    x, w = _operands()

    def chosen() -> str:
        lines = _lines(backends.explain("depthwise_conv2d", x, w))
        return next(name for name, verdict in lines.items() if verdict == "chosen")

    assert chosen() == "cpu"
    with backends.use("aten"):
        assert chosen() == "aten"
        with backends.use("cpu"):
            assert chosen() == "cpu"
        with backends.use(None):
            assert chosen() == "cpu"
        assert chosen() == "aten"
    assert chosen() == "cpu"
    with pytest.raises(KeyError), backends.use("aten"):
        raise KeyError
    assert chosen() == "cpu", "an exception in the block must not leave the backend in use"
    try:
        backends.use("aten")
        assert chosen() == "aten"
    finally:
        backends.use(None)
    assert chosen() == "cpu"


def test_unknown_names_are_refused() -> None:
    x, w = _operands()
    for attempt in (lambda: backends.use("cudnn"), lambda: cnnext.functional.depthwise_conv2d(x, w, backend="cudnn")):
        with pytest.raises(ValueError, match=r"'cudnn'.*'cpu'.*'aten'"):
            attempt()
    assert cnnext.functional.depthwise_conv2d(x, w).shape == (1, 4, 4, 4)


def test_a_backend_asked_for_by_name_runs_or_says_why() -> None:
    x, w = _operands(torch.int64)
    with pytest.raises(backends.BackendError, match=r"'cpu'.*torch\.int64"):
        cnnext.functional.depthwise_conv2d(x, w, backend="cpu")
    with backends.use("cpu"), pytest.raises(backends.BackendError, match=r"torch\.int64"):
        cnnext.functional.depthwise_conv2d(x, w)
    if "cuda" not in backends.available():
        with pytest.raises(backends.BackendError, match=r"'cuda' cannot run"):
            cnnext.functional.depthwise_conv2d(*_operands(), backend="cuda")
    assert issubclass(backends.BackendError, RuntimeError)


def test_a_name_for_one_call_comes_before_use() -> None:
    x, w = _operands()
    with backends.use("cpu"):
        lines = _lines(backends.explain("depthwise_conv2d", x, w, backend="aten"))
    assert lines["aten"] == "chosen"
    assert "'aten'" in lines["cpu"]


@pytest.mark.parametrize("op", CASES)
def test_backends_agree(op: str) -> None:
    for case in CASES[op][:12]:
        operands = random_operands(case, torch.float64)
        for activation in (None, "mish"):
            results = [apply_op(op, case, *operands, activation=activation, backend=name) for name in ("cpu", "aten")]
            torch.testing.assert_close(*results)
            assert results[0].stride() == results[1].stride()


def test_wrong_calls_of_a_named_backend_keep_their_words() -> None:
    x, w = _operands()
    for backend in ("cpu", "aten"):
        with pytest.raises(RuntimeError, match="non-positive stride"):
            cnnext.functional.depthwise_conv2d(x, w, stride=0, backend=backend)


def test_info_says_what_is_built_and_what_loaded() -> None:
    result = subprocess.run([sys.executable, "-m", "cnnext.info"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = {line.split("  ", 1)[0]: line.split("  ", 1)[1].strip() for line in result.stdout.splitlines()}
    assert lines["cpu kernels"].startswith("loaded, ")
    assert lines["cpu kernels"].rpartition(" ")[2] in ("avx512", "avx2", "baseline")
    assert lines["torch"].startswith(torch.__version__)
    assert "aten" in lines["backends"]
    if "cuda" not in backends.available():
        assert len(lines["cuda kernels"]) > 10, "the reason is missing"
