"""Fitting the static report's rates to measured times. The measurements here are synthetic: no GPU gave them."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
from rich.console import Console

from bench.static_report import calibrate
from bench.static_report.launches import Call
from bench.static_report.model import LaunchPrediction, Prediction
from bench.static_report.rates import ARCHITECTURES

H100 = ARCHITECTURES[90]
UNITS = ("memory", "l2", "issue", "fma", "alu", "fp16", "fp64", "xu", "tensor", "lsu", "latency")
#: What the synthetic card takes over what is assumed.
TRUTH = {"memory": 1.2, "lsu": 1.6, "latency": 0.8}


def _predictions(count: int = 60) -> list[Prediction]:
    """Calls of which some are limited by each unit of `TRUTH`, and none by the others."""
    chance = random.Random(7)
    predictions = []
    for index in range(count):
        op, layout = ("forward", "backward_input", "backward_weight")[index % 3], ("nchw", "nhwc")[index % 2]
        call = Call(op, layout, "float16", 128, 32 + index, 56, 56, 3, 3, (1, 1), (1, 1))
        scale = 1e-5 * (1 + index % 7)
        launches = []
        for part in range(1 + (op == "backward_weight")):
            bounds = {unit: scale * chance.uniform(0.01, 0.2) for unit in UNITS}
            for unit, least in (("memory", 0.8), ("lsu", 0.4), ("latency", 0.5)):
                bounds[unit] = scale * chance.uniform(least, 1.1)
            bounds = {unit: seconds * (0.1 if part else 1.0) for unit, seconds in bounds.items()}
            unused: Any = None
            launches.append(LaunchPrediction("depthwise_kernel", unused, unused, 32, bounds, {}, {}, 1.0))
        predictions.append(Prediction(call, "", tuple(launches), 0.8 * scale, 2e-6 * len(launches)))
    return predictions


def _synthetic_measurement(predictions: list[Prediction], noise: float) -> dict[str, Any]:
    """A result of ``python -m bench ops`` as a card with the rates of `TRUTH` would give it."""
    chance = random.Random(3)
    cases = []
    for p in predictions:
        seconds = p.launch_seconds + sum(
            max(bound * TRUTH.get(unit, 1.0) for unit, bound in launch.bounds.items()) for launch in p.launches
        )
        cases.append(
            {
                "kind": "depthwise",
                "pass": p.call.op,
                "layout": "nchw" if p.call.layout == "nchw" else "channels_last",
                "layer": f"depthwise 3x3 s1 {p.call.C}->{p.call.C} 56x56",
                "paths": {"cnnext": "cuda"},
                "cnnext": {"ms": 1e3 * seconds * chance.gauss(1.0, noise)},
            }
        )
    # What nobody predicted, and what another backend ran, is left out.
    cases.append({**cases[0], "layer": "depthwise 9x9 s1 5->5 7x7"})
    cases.append({**cases[1], "paths": {"cnnext": "triton"}, "cnnext": {"ms": 1e9}})
    return {
        "synthetic": True,
        "environment": {"device_name": "no card: synthetic", "compute_capability": "9.0"},
        "settings": {"dtype": "float16", "batch": 128},
        "cases": cases,
    }


def test_the_rates_of_a_synthetic_card_are_found() -> None:
    predictions = _predictions()
    times = calibrate.measured_times(_synthetic_measurement(predictions, noise=0.02), H100)
    found = calibrate.calibrate(predictions, times)
    assert len(found.calls) == len(predictions)
    factors = {rate.unit: rate.factor for rate in found.rates}
    for unit, truth in TRUTH.items():
        if factors[unit] is not None:
            assert factors[unit] == pytest.approx(truth, rel=0.05), unit
    assert factors["memory"] is not None
    assert factors["lsu"] is not None
    assert all(factors[unit] is None for unit in UNITS if unit not in TRUTH), "what limits nothing cannot be told"
    assert found.error_before > 0.1
    assert found.error_after < 0.03
    better = calibrate.corrected(H100, found.rates)
    assert better.copy_bandwidth == pytest.approx(H100.copy_bandwidth / 1.2, rel=0.05)
    assert better.l2_bandwidth == H100.l2_bandwidth


def test_right_rates_are_left_alone() -> None:
    predictions = _predictions()
    times = {
        (p.call.op, "nchw" if p.call.layout == "nchw" else "channels_last", "float16", 128,
         f"depthwise 3x3 s1 {p.call.C}->{p.call.C} 56x56"): p.seconds + p.launch_seconds
        for p in predictions
    }  # fmt: skip
    found = calibrate.calibrate(predictions, times)
    assert {rate.factor for rate in found.rates} <= {None, 1.0}
    assert found.error_after == pytest.approx(0.0, abs=1e-9)


def test_tables_and_json() -> None:
    predictions = _predictions(9)
    times = calibrate.measured_times(_synthetic_measurement(predictions, noise=0.0), H100)
    found = calibrate.calibrate(predictions, times)
    console = Console(width=200, record=True, file=io.StringIO())
    calibrate.print_calibration(console, found, H100, "synthetic.json")
    text = console.export_text()
    assert "Predicted and measured (synthetic.json)" in text
    assert "cannot be told" in text
    rows = calibrate.document(found)["calls"]
    assert len(rows) == 9
    assert rows[0]["measured_us"] == pytest.approx(found.calls[0].measured_seconds * 1e6)


def test_another_card_is_refused() -> None:
    document = _synthetic_measurement(_predictions(3), noise=0.0)
    with pytest.raises(ValueError, match=r"capability 9\.0; predicted for 8\.0"):
        calibrate.measured_times(document, ARCHITECTURES[80])
    del document["environment"]["compute_capability"]
    with pytest.raises(ValueError, match="None"):
        calibrate.measured_times(document, H100)
    with pytest.raises(ValueError, match="no call is both"):
        calibrate.calibrate(_predictions(3), {})
