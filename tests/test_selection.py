"""Choosing a backend by the cost model and by measurement, and the file that measurements are kept in."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cnnext
from cnnext import backends
from cnnext.backends import cost_model, measured, store
from cnnext.backends.call import ConvCall
from cnnext.functional import depthwise_conv2d, grouped_conv2d, make_call
from tests.cases import CASES, apply_op, random_operands

ROOT = Path(__file__).resolve().parent.parent
RULES = dict(cost_model.RULES)  # as the package has them; tests/conftest.py takes them away
RECORDED = json.loads((ROOT / "tests/data/selection_cpu.json").read_text())["cases"]


# ----------------------------------------------------------------------------------------------------- the cost model


def _call(family: str, input: torch.Tensor, weight: torch.Tensor, groups: int = 1, **changes: Any) -> ConvCall:
    call = ConvCall(family, input, weight, None, (1, 1), (1, 1), (1, 1), groups, 0)
    return call._replace(**changes)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


@pytest.fixture
def _rules(monkeypatch: pytest.MonkeyPatch) -> None:
    if ("grouped", torch.float32) not in RULES:
        pytest.skip("this torch has no oneDNN, so there are no rules")
    # Those of the machine of the recorded times, whatever this one is.
    rules = {**RULES, **{(family, torch.bfloat16): cost_model._BFLOAT16 for family in ("grouped", "pointwise")}}
    monkeypatch.setattr(cost_model, "RULES", rules)


@pytest.mark.usefixtures("_rules")
def test_the_cost_model_beats_either_backend_alone_on_recorded_times() -> None:
    regret: dict[str, list[float]] = {"model": [], "cpu": [], "aten": []}
    left_to_aten = 0
    for case in RECORDED:
        layout = torch.channels_last if case["channels_last"] else torch.contiguous_format
        dtype = getattr(torch, case["dtype"])
        call = _call(
            case["family"],
            torch.empty(case["input"], dtype=dtype, memory_format=layout),
            torch.empty(case["weight"], dtype=dtype),
            groups=case["groups"],
            stride=case["stride"],
            padding=case["padding"],
        )
        rule = cost_model.prefers_aten(call) if case["family"] != "depthwise" else None
        times = {"cpu": case["cpu_us"], "aten": case["aten_us"]}
        times["model"] = times["cpu" if rule is None else "aten"]
        left_to_aten += rule is not None
        for name, seen in regret.items():
            seen.append(times[name] / min(times["cpu"], times["aten"]))
    means = {name: _geometric_mean(values) for name, values in regret.items()}
    assert means["model"] < 1.04
    assert means["model"] < means["cpu"] < means["aten"]
    assert 50 < left_to_aten < len(RECORDED) / 2


@pytest.mark.usefixtures("_rules")
def test_the_cost_model_chooses_and_says_so() -> None:
    x = torch.empty(1, 64, 56, 56).to(memory_format=torch.channels_last)
    w = torch.empty(64, 64, 3, 3)
    assert backends.chosen("grouped_conv2d", x, w) == {"forward": "aten"}
    lines = backends.explain("grouped_conv2d", x, w).splitlines()
    assert lines[-1].startswith("aten: chosen by the cost model: a channels_last product of 16 or more channels")
    assert lines[-2] == "cpu: could run this, but aten is chosen"
    for dtype in (torch.float64, torch.float16):
        assert backends.chosen("grouped_conv2d", x.to(dtype), w.to(dtype)) == {"forward": "cpu"}
    assert backends.chosen("grouped_conv2d", x[..., :4, :4], w) == {"forward": "cpu"}, "too small to be worth it"
    assert backends.chosen("grouped_conv2d", x, w, backend="cpu") == {"forward": "cpu"}
    with torch.autocast("cpu", dtype=torch.float16):
        assert backends.chosen("grouped_conv2d", x, w) == {"forward": "cpu"}
    assert torch.backends.mkldnn.enabled
    with torch.backends.mkldnn.flags(enabled=False):
        assert backends.chosen("grouped_conv2d", x, w) == {"forward": "cpu"}


@pytest.mark.usefixtures("_rules")
def test_the_cost_model_puts_no_guard_on_sizes_that_vary() -> None:
    torch._dynamo.reset()
    batch = torch.export.Dim("batch", min=1)
    module = cnnext.GroupedConv2d(16, 16, 3, padding=1)
    x = torch.randn(2, 16, 20, 20).to(memory_format=torch.channels_last)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    big = torch.randn(64, 16, 20, 20).to(memory_format=torch.channels_last)  # where a rule would hold
    torch.testing.assert_close(program.module()(big), torch.nn.Conv2d.forward(module, big), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


# -------------------------------------------------------------------------------------------------- by measurement


@pytest.fixture
def times_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Measuring is on, and its file in a directory of its own; the path is known once there is one."""
    monkeypatch.setenv("CNNEXT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(backends, "benchmark", True)
    backends._selector.forget()
    yield measured._store(torch.device("cpu")).path  # type: ignore[misc]
    backends._selector.forget()


def _pretend(monkeypatch: pytest.MonkeyPatch, **seconds: dict[str, float]) -> list[str]:
    """Replaces measuring by times of `backend={direction: seconds}`; returns the list of directions measured."""
    seen: list[str] = []

    def measure(call: Any, problem: Any, candidates: Any) -> dict[str, float]:
        seen.append(problem.direction)
        return {backend.name: seconds[backend.name][problem.direction] for backend in candidates}

    monkeypatch.setattr(measured, "_measure", measure)
    return seen


FORWARD_ONLY = {"forward": 1.0, "backward_input": 1.0, "backward_weight": 1.0}


def test_the_faster_backend_runs_and_is_measured_once(times_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _pretend(monkeypatch, cpu=FORWARD_ONLY, aten={**FORWARD_ONLY, "forward": 0.5})
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    for _ in range(3):
        assert backends.chosen("depthwise_conv2d", x, w) == {"forward": "aten"}
        assert backends.choose(make_call("depthwise_conv2d", x, w)[0]).name == "aten"
        depthwise_conv2d(x, w)
    assert seen == ["forward"]
    lines = backends.explain("depthwise_conv2d", x, w).splitlines()
    assert lines[-1] == "aten: chosen, measured: forward 500 ms"
    assert lines[-2] == "cpu: could run this, measured: forward 1e+03 ms"
    depthwise_conv2d(x[:1], w)
    depthwise_conv2d(x.to(memory_format=torch.channels_last), w)
    depthwise_conv2d(x.double(), w.double())
    assert len(seen) == 4, "another size, layout or dtype is another problem"

    backends._selector.forget()  # as a second start of the program
    assert backends.chosen("depthwise_conv2d", x, w) == {"forward": "aten"}
    assert len(seen) == 4
    backends.forget_measurements()
    assert not times_file.exists()
    depthwise_conv2d(x, w)
    assert len(seen) == 5


def test_nearly_as_fast_is_no_reason_to_change(times_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, cpu=FORWARD_ONLY, aten={**FORWARD_ONLY, "forward": 0.99})
    assert backends.chosen("depthwise_conv2d", torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)) == {"forward": "cpu"}


@pytest.mark.parametrize("op", CASES)
def test_directions_on_backends_of_their_own_give_the_same_gradients(
    op: str, times_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = dict.fromkeys(FORWARD_ONLY, 2.0)
    seen = _pretend(
        monkeypatch, cpu={**slow, "backward_input": 1.0}, aten={**slow, "backward_input": 3.0, "forward": 1}
    )
    ran: list[str] = []
    original = measured.Selector._families_for
    monkeypatch.setattr(
        measured.Selector,
        "_families_for",
        lambda self, problem, tensor: (ran.append(problem.direction), original(self, problem, tensor))[1],
    )
    for case in CASES[op][:6]:
        operands = [t.requires_grad_() if t is not None else None for t in random_operands(case, torch.float64)]
        tensors = [t for t in operands if t is not None]
        results = []
        for name in (None, "aten"):
            output = apply_op(op, case, *operands, activation="silu", backend=name)
            first = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
            results.append([output, *first, *second])
        torch.testing.assert_close(*results)
    assert set(ran) == set(seen) == set(FORWARD_ONLY)
    x, w, *_ = operands
    if op == "depthwise":
        chosen = backends.chosen("depthwise_conv2d", x, w)
        assert chosen == {"forward": "aten", "backward_input": "cpu", "backward_weight": "cpu"}
        text = backends.explain("depthwise_conv2d", x, w)
        assert "cpu: chosen for backward_input and backward_weight, measured: forward 2e+03 ms" in text
        assert "aten: chosen for forward, measured" in text


def test_a_real_measurement_chooses_what_is_faster(times_file: Path) -> None:
    """float16 on a CPU: PyTorch's kernels take at least ten times as long on any machine known."""
    x, w = torch.randn(2, 32, 28, 28).half().requires_grad_(), torch.randn(32, 1, 3, 3).half().requires_grad_()
    started = time.perf_counter()
    y = depthwise_conv2d(x, w, padding=1)
    assert time.perf_counter() - started < 20
    y.sum().backward()
    document = json.loads(times_file.read_text())
    assert len(document["seconds"]) == 3
    for times in document["seconds"].values():
        assert set(times) == {"cpu", "aten"}
        assert 0 < times["cpu"] < times["aten"] < 5


def test_timing_finds_known_delays() -> None:
    calls = {name: (lambda seconds=seconds: time.sleep(seconds)) for name, seconds in (("a", 0.002), ("b", 0.003))}

    def fail() -> None:
        raise RuntimeError("out of memory")

    hopeless = []
    calls |= {"fails": fail, "hopeless": lambda: (hopeless.append(1), time.sleep(0.05))}
    times = measured.time_calls(calls, "cpu")
    assert set(times) == {"a", "b", "hopeless"}
    assert 0.002 <= times["a"] < times["b"] < 0.02 < times["hopeless"]
    assert len(hopeless) == 2, "it is not timed again after the first look"


def test_wrong_calls_keep_their_words(times_file: Path) -> None:
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    for wrong in (lambda: grouped_conv2d(x, w), lambda: grouped_conv2d(x, w[0]), lambda: depthwise_conv2d(x, w.half())):
        with pytest.raises(RuntimeError, match=r"[Ee]xpected|same"):
            wrong()
    with pytest.raises(RuntimeError, match="non-positive stride"):
        depthwise_conv2d(x, w, stride=0)
    assert not times_file.exists()


def test_nothing_is_measured_where_it_would_disturb(times_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _pretend(monkeypatch, cpu=FORWARD_ONLY, aten={**FORWARD_ONLY, "forward": 0.5})
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    expected = depthwise_conv2d(x, w, backend="cpu")
    torch._dynamo.reset()
    compiled = torch.compile(depthwise_conv2d, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w), expected)
    torch.testing.assert_close(torch.vmap(depthwise_conv2d, in_dims=(0, None))(x[None], w)[0], expected)
    traced = torch.jit.trace(depthwise_conv2d, (x, w), check_trace=False)
    torch.testing.assert_close(traced(x, w), expected)
    with torch._subclasses.FakeTensorMode():
        assert depthwise_conv2d(torch.empty(2, 8, 9, 9), torch.empty(8, 1, 3, 3)).shape == expected.shape
    torch.use_deterministic_algorithms(True)
    torch.testing.assert_close(depthwise_conv2d(x, w), expected)
    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    torch.testing.assert_close(depthwise_conv2d(x, w), expected)
    assert backends.choose(make_call("depthwise_conv2d", x, w)[0]).name == "cpu"
    assert not seen
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert backends.choose(make_call("depthwise_conv2d", x, w)[0]).name == "aten"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert backends.choose(make_call("depthwise_conv2d", x, w)[0]).name == "aten", "what is known holds in a capture"
    assert seen == ["forward"]
    torch._dynamo.reset()


def test_autocast_is_a_problem_of_its_dtype(times_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, cpu=FORWARD_ONLY, aten={**FORWARD_ONLY, "forward": 0.5})
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert depthwise_conv2d(x, w).dtype == torch.bfloat16
        depthwise_conv2d(x.bfloat16(), w)  # as the layers of a network see it
    (problem,) = json.loads(times_file.read_text())["seconds"]
    assert problem.startswith("depthwise forward bfloat16 nchw 2x8x9x9 8x1x3x3 ")


# ------------------------------------------------------------------------------------------------------ the file


IDENTITY = {"device": "a processor", "torch": "1"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "\x00\xff",
        '{"format": 99, "identity": {"device": "a processor", "torch": "1"}, "seconds": {"p": {"cpu": 1.0}}}',
        '{"format": 1, "identity": {"device": "a processor", "torch": "2"}, "seconds": {"p": {"cpu": 1.0}}}',
        '{"format": 1, "identity": {"device": "a processor", "torch": "1"}, "seconds": []}',
        '{"format": 1, "identity": {"device": "a processor", "torch": "1"}, "seconds": {"p": 3, "q": {"cpu": "x"}}}',
        '{"format": 1, "identity": {"device": "a processor", "torch": "1"}, "seconds": {"p": {"cpu": NaN, "b": -1.0}}}',
    ],
    ids=["empty", "cut", "null", "list", "binary", "format", "stale", "no-table", "no-times", "bad-times"],
)
def test_a_corrupt_or_stale_file_is_ignored_and_replaced(text: str, tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(text.encode("latin-1"))
    kept = store.Store(path, IDENTITY)
    assert kept.read() == {}
    kept.add("problem", {"cpu": 0.5, "aten": 1.0})
    assert store.Store(path, IDENTITY).read() == {"problem": {"cpu": 0.5, "aten": 1.0}}


def test_a_stale_file_is_measured_again(times_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _pretend(monkeypatch, cpu=FORWARD_ONLY, aten=FORWARD_ONLY)
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    depthwise_conv2d(x, w)
    document = json.loads(times_file.read_text())
    document["identity"]["torch"] = "0.4.1"
    times_file.write_text(json.dumps(document))
    backends._selector.forget()
    depthwise_conv2d(x, w)
    assert seen == ["forward", "forward"]
    assert json.loads(times_file.read_text())["identity"]["torch"] == torch.__version__


def _add_many(path: Path, worker: int) -> None:
    for index in range(20):
        store.Store(path, IDENTITY).add(f"{worker}/{index}", {"cpu": 1.0})


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    store.Store(path, IDENTITY).add("first", {"cpu": 1.0})
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert "first" in store.Store(path, IDENTITY).read(), "a reader sees a whole file at any moment"
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(store.Store(path, IDENTITY).read()) == 1 + 4 * 20
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".times.json.lock", "times.json"]


def test_a_directory_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = store.Store(tmp_path / "file" / "times.json", IDENTITY)
    with pytest.warns(UserWarning, match="CNNEXT_CACHE_DIR"):
        kept.add("problem", {"cpu": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.add("problem", {"cpu": 1.0})
    assert kept.read() == {}


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNEXT_CACHE_DIR", "/somewhere")
    assert store.directory() == Path("/somewhere")
    monkeypatch.setenv("CNNEXT_CACHE_DIR", "")
    assert store.directory() is None
    monkeypatch.delenv("CNNEXT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert store.directory() == Path("/cache/cnnext")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.directory() == Path.home() / ".cache/cnnext"


def test_a_second_process_measures_nothing(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import torch, cnnext
        from cnnext.backends import measured
        cnnext.backends.benchmark = True
        count, original = 0, measured._measure
        def measure(*args):
            global count
            count += 1
            return original(*args)
        measured._measure = measure
        module = cnnext.DepthwiseConv2d(8, 8, 3, padding=1)
        module(torch.randn(1, 8, 16, 16)).sum().backward()
        print(count)
        """
    )
    environment = os.environ | {"CNNEXT_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    counts = [
        int(subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert counts == [2, 0], "forward and the gradient of the weight, once"
