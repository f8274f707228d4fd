"""The benchmark measures what it says, writes whole files, and runs from the command line."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="the benchmark needs rich")

from bench import report, runner, timer
from bench.cases import collect_layers, to_pytorch

ROOT = Path(__file__).resolve().parent.parent


# --- the timer --------------------------------------------------------------------------------------------------------


def test_timer_against_known_delays() -> None:
    delays = {"short": 0.002, "long": 0.006}
    contenders = {name: (lambda seconds=seconds: time.sleep(seconds)) for name, seconds in delays.items()}
    result = timer.compare(contenders, timer.CpuClock(), seconds=0.6)
    for name, seconds in delays.items():
        timing = result[name]
        assert seconds <= timing.p20 <= timing.median <= timing.p80
        assert timing.median < seconds + 0.004, "sleep is late by far less on any machine that is not overloaded"
        assert timing.samples >= timer.MIN_ROUNDS
    assert 1.5 < result["long"].median / result["short"].median < 4


def test_timer_takes_its_minimum_of_rounds_and_else_keeps_to_the_time() -> None:
    calls = {"a": 0, "b": 0}

    def call(name: str) -> None:
        calls[name] += 1

    result = timer.compare({name: lambda name=name: call(name) for name in calls}, timer.CpuClock(), 1e-9, min_rounds=5)
    assert [timing.samples for timing in result.values()] == [5, 5]
    assert min(calls.values()) > 100, "fast calls are repeated within a sample"
    start = time.perf_counter()
    timer.compare({"sleep": lambda: time.sleep(0.001)}, timer.CpuClock(), 0.3)
    assert 0.2 < time.perf_counter() - start < 2


def test_timer_averages_fast_calls_and_alternates() -> None:
    order: list[str] = []
    timer.compare(
        {name: lambda name=name: (order.append(name), time.sleep(0.004)) for name in ("a", "b")},
        timer.CpuClock(),
        1e-9,
        min_rounds=4,
    )
    assert "".join(order[-8:]) == "abbaabba", "every other round runs in reverse order"


def test_timer_refuses_nothing_to_time() -> None:
    with pytest.raises(ValueError, match="nothing"):
        timer.compare({}, timer.CpuClock(), 1.0)


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [([3.0], 80, 3.0), ([4.0, 1, 3, 2], 50, 2.5), ([5.0, 1, 3], 0, 1.0), ([5.0, 1, 3], 100, 5.0), ([0.0, 10], 20, 2.0)],
)
def test_percentiles(samples: list[float], percent: float, expected: float) -> None:
    assert timer.percentile(samples, percent) == expected


def test_percentile_of_nothing() -> None:
    for samples, percent in (([], 50), ([1.0], 101), ([1.0], -1)):
        with pytest.raises(ValueError, match="percent"):
            timer.percentile(samples, percent)


def test_budget_makes_up_for_lost_time() -> None:
    now = [100.0]
    budget = timer.Budget(12.0, weight=4.0, now=lambda: now[0])
    assert budget.take(1.0) == 3.0
    now[0] += 6.0
    assert budget.take(1.0) == 2.0
    now[0] += 100.0
    assert budget.take(1.0) == 0.0


# --- accuracy and summary ---------------------------------------------------------------------------------------------


def test_relative_error() -> None:
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert runner.relative_error(torch.tensor([1.0, -3.0]), reference) == 0.25
    assert runner.relative_error([torch.tensor([1.0, -4.0])], [reference]) == 0.0
    assert math.isinf(runner.relative_error(torch.tensor([torch.nan, -4.0]), reference))
    with pytest.raises(ValueError, match="shapes"):
        runner.relative_error(torch.zeros(3), reference)


def test_a_wrong_result_is_not_accurate() -> None:
    assert runner.is_accurate(1e-6, 1e-6, torch.float32)
    assert not runner.is_accurate(1e-3, 1e-6, torch.float32)
    assert not runner.is_accurate(1e-3, None, torch.float32)
    assert runner.is_accurate(1e-3, 1e-3, torch.bfloat16)


def test_geometric_mean() -> None:
    assert report.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert report.geometric_mean([8.0]) == pytest.approx(8.0)
    for values in ([], [1.0, 0.0], [1.0, -2.0]):
        with pytest.raises(ValueError, match="positive"):
            report.geometric_mean(values)


# --- files ------------------------------------------------------------------------------------------------------------


def test_json_is_whole_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    documents = [{"fill": [i] * 20_000, "number": i} for i in range(12)]
    report.write_json(path, documents[0])
    done = threading.Event()
    seen: set[int] = set()

    def read() -> None:
        while not done.is_set():
            document = json.loads(path.read_text())
            assert document["fill"] == [document["number"]] * 20_000
            seen.add(document["number"])

    failures: list[BaseException] = []

    def guarded_read() -> None:
        try:
            read()
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=guarded_read)
    reader.start()
    for document in documents:
        report.write_json(path, document)
    done.set()
    reader.join()
    assert not failures
    assert seen
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"], "temporary files are left behind"


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    report.write_json(path, {"good": 1})
    for bad in ({"nan": float("nan")}, {"what": object()}):
        with pytest.raises((ValueError, TypeError)):
            report.write_json(path, bad)

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_json(path, {"good": 2})
    assert json.loads(path.read_text()) == {"good": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


# --- layers -----------------------------------------------------------------------------------------------------------


def test_distinct_layers_of_mobilenet() -> None:
    import cnnext

    network = cnnext.models.mobilenet_v1()
    layers = collect_layers({"mobilenet_v1": network})
    assert sum(layer.counts["mobilenet_v1"] for layer in layers) == 27
    assert len({layer.shape for layer in layers}) == len(layers) == 19
    assert [layer.shape.name for layer in layers if layer.is_stem] == [layers[0].shape.name]
    assert layers[0].shape.multiply_adds(1) == 112 * 112 * 32 * 27
    plain = to_pytorch(network)
    assert all(type(m) is torch.nn.Conv2d for m in plain.modules() if isinstance(m, torch.nn.Conv2d))


# --- command line -----------------------------------------------------------------------------------------------------


def _bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *args], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_command_line(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    result = _bench(
        "--quick",
        "--threads",
        "1",
        "--network",
        "mobilenet_v1",
        "--layout",
        "nchw",
        "--seconds",
        "1",
        "--out",
        str(out),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    assert document["complete"]
    assert document["environment"]["torch"] == torch.__version__
    cases = document["cases"]
    assert [case["kind"] for case in cases].count("network") == 1
    assert sum(case["kind"] == "depthwise" for case in cases) == 9
    for case in cases:
        assert case["accurate"], case["id"]
        assert not case["failures"]
        assert case["error"]["cnnext"] < 1e-4
        assert case["ratio"] == pytest.approx(case["pytorch"]["ms"] / case["cnnext"]["ms"])
        assert case["cnnext"]["ms_p20"] <= case["cnnext"]["ms"] <= case["cnnext"]["ms_p80"]
    assert "mobilenet_v1" in result.stdout
    assert str(out) in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--network", "lenet6"), "lenet6"),
        (("--batch", "0"), "at least 1"),
        (("--seconds", "-3"), "above 0"),
        (("--device", "tpu"), "tpu"),
        (("--out", "/"), "directory"),
    ],
    ids=str,
)
def test_wrong_options_are_one_line(args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    from bench.__main__ import main

    with pytest.raises(SystemExit) as exit:
        main(args)
    assert exit.value.code == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert len(errors.strip().splitlines()) == 1
