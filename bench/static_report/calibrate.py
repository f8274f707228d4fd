"""Predicted beside measured: which of the assumed rates a card's measurements contradict, and what they should be.

A measurement is a result of ``python -m bench ops`` on the card. A prediction is the largest of what each unit needs
(`model.py`); a factor for each unit, the same for all calls, is fitted so that the predictions come closest to the
times. A unit that limits no call, whatever its factor within reason, cannot be told, and keeps its rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.static_report.model import Prediction
from bench.static_report.rates import Architecture

_LAYOUT = {"nchw": "nchw", "nhwc": "channels_last"}
#: The factors that are tried: a unit is no more than four times as slow, or as fast, as NVIDIA says.
_GRID = np.geomspace(0.25, 4.0, 161)
#: What a factor of e away from the assumed rate has to gain, in the mean error of the calls: less is chance.
_RELUCTANCE = 0.004
#: Calls that a unit must limit, to be told.
_LEAST_CALLS = 3


@dataclass(frozen=True)
class Comparison:
    """A call that was predicted and measured."""

    prediction: Prediction
    measured_seconds: float
    #: With the fitted rates; the launches are in it, as they are in the measurement.
    calibrated_seconds: float

    @property
    def predicted_seconds(self) -> float:
        """With the assumed rates, the launches too."""
        return self.prediction.seconds + self.prediction.launch_seconds


@dataclass(frozen=True)
class Rate:
    """What the measurements say of a unit."""

    unit: str
    #: The time that its work takes over what was assumed, or None if it cannot be told.
    factor: float | None
    #: The calls that it limits, with the fitted rates.
    calls: int


@dataclass(frozen=True)
class Calibration:
    """Calls with both times, and the rates that follow."""

    calls: list[Comparison]
    rates: list[Rate]

    @staticmethod
    def _error(ratios: Sequence[float]) -> float:
        return float(np.exp(np.mean(np.abs(np.log(ratios))))) - 1

    @property
    def error_before(self) -> float:
        """How far the predictions are off, on average, as a share of the time."""
        return self._error([c.predicted_seconds / c.measured_seconds for c in self.calls])

    @property
    def error_after(self) -> float:
        """The same with the fitted rates."""
        return self._error([c.calibrated_seconds / c.measured_seconds for c in self.calls])


def measured_times(
    document: Mapping[str, Any], architecture: Architecture
) -> dict[tuple[str, str, str, int, str], float]:
    """Read the times of depthwise layers from a result of the benchmark.

    Args:
        document: the result.
        architecture: that was predicted.

    Returns:
        Seconds by pass, layout, dtype, batch and name of the layer.

    Raises:
        ValueError: if it was measured on another architecture, or on none.
    """
    capability = document["environment"].get("compute_capability")
    wanted = f"{architecture.architecture // 10}.{architecture.architecture % 10}"
    if capability != wanted:
        where = document["environment"].get("device_name", "an unknown device")
        raise ValueError(f"measured on {where}, of compute capability {capability}; predicted for {wanted}")
    dtype, batch = document["settings"]["dtype"], document["settings"]["batch"]
    times = {}
    for case in document["cases"]:
        if case["kind"] == "depthwise" and case["cnnext"] and case["paths"]["cnnext"] == "cuda":
            times[case["pass"], case["layout"], dtype, batch, case["layer"]] = case["cnnext"]["ms"] / 1e3
    return times


def _layer_name(prediction: Prediction) -> str:
    call = prediction.call
    stride = f"s{call.stride[0]}" if call.stride[0] == call.stride[1] else f"s{call.stride[0]}x{call.stride[1]}"
    return f"depthwise {call.R}x{call.S} {stride} {call.C}->{call.C} {call.H}x{call.W}"


class _Model:
    """The predictions as arrays: what each unit needs of each launch of each call."""

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self.units = sorted({unit for p in predictions for launch in p.launches for unit in launch.bounds})
        most = max(len(p.launches) for p in predictions)
        self.bounds = np.zeros((len(predictions), most, len(self.units)))  # call x launch x unit, seconds
        for i, prediction in enumerate(predictions):
            for j, launch in enumerate(prediction.launches):
                for unit, seconds in launch.bounds.items():
                    self.bounds[i, j, self.units.index(unit)] = seconds
        self.launch_seconds = np.array([p.launch_seconds for p in predictions])

    def seconds(self, factors: np.ndarray) -> np.ndarray:
        """The time of each call with a factor for each unit."""
        return (self.bounds * factors).max(axis=2).sum(axis=1) + self.launch_seconds

    def limits(self, factors: np.ndarray) -> np.ndarray:
        """How many calls each unit limits, by their longest launch."""
        scaled = self.bounds * factors
        longest = scaled.max(axis=2).argmax(axis=1)
        units = scaled[np.arange(len(scaled)), longest].argmax(axis=1)
        return np.bincount(units, minlength=len(self.units))


def _fit(model: _Model, measured: np.ndarray) -> np.ndarray:
    """The factors with the least error, found a unit at a time until none gains."""

    def loss(factors: np.ndarray) -> float:
        off = np.abs(np.log(model.seconds(factors) / measured)).mean()
        return float(off + _RELUCTANCE * np.abs(np.log(factors)).sum())

    factors = np.ones(len(model.units))
    best = loss(factors)
    improved = True
    while improved:
        improved = False
        for unit in range(len(factors)):
            for factor in _GRID:
                tried = factors.copy()
                tried[unit] = factor
                if (now := loss(tried)) < best - 1e-9:
                    factors, best, improved = tried, now, True
    return factors


def calibrate(predictions: Sequence[Prediction], times: Mapping[tuple[str, str, str, int, str], float]) -> Calibration:
    """Fit the rates to the calls that were both predicted and measured.

    Args:
        predictions: of one architecture.
        times: see `measured_times`.

    Raises:
        ValueError: if no call was both.
    """

    def key(p: Prediction) -> tuple[str, str, str, int, str]:
        return (p.call.op, _LAYOUT[p.call.layout], p.call.dtype, p.call.N, _layer_name(p))

    both = [p for p in predictions if key(p) in times]
    if not both:
        raise ValueError("no call is both predicted and measured: the network, batch and dtype must be the same")
    measured = np.array([times[key(p)] for p in both])
    model = _Model(both)
    factors = _fit(model, measured)
    calls = [
        Comparison(p, float(seconds), float(calibrated))
        for p, seconds, calibrated in zip(both, measured, model.seconds(factors), strict=True)
    ]
    rates = [
        Rate(unit, float(factor) if count >= _LEAST_CALLS else None, int(count))
        for unit, factor, count in zip(model.units, factors, model.limits(factors), strict=True)
    ]
    return Calibration(calls, rates)


def corrected(architecture: Architecture, rates: Sequence[Rate]) -> Architecture:
    """The table of `rates.py` with the rates that the measurements give."""
    factors = {rate.unit: rate.factor for rate in rates if rate.factor is not None}
    lanes = {name: lanes / factors.get(name, 1.0) for name, lanes in architecture.lanes.items()}
    return replace(
        architecture,
        copy_bandwidth=architecture.copy_bandwidth / factors.get("memory", 1.0),
        l2_bandwidth=architecture.l2_bandwidth / factors.get("l2", 1.0),
        memory_latency=architecture.memory_latency * factors.get("latency", 1.0),
        lanes=lanes,  # type: ignore[arg-type]
    )


def _rates_in_words(architecture: Architecture) -> dict[str, str]:
    """The rate of each unit, in the terms of `rates.py`."""
    words = {name: f"{lanes:.3g} lanes" for name, lanes in architecture.lanes.items()}
    return words | {
        "memory": f"{architecture.copy_bandwidth / 1e12:.2f} TB/s",
        "l2": f"{architecture.l2_bandwidth / 1e12:.2f} TB/s",
        "latency": f"{architecture.memory_latency:.0f} cycles to memory",
        "issue": f"{architecture.schedulers} a clock",
        "lsu": "1 a clock",
    }


def print_calibration(console: Console, calibration: Calibration, architecture: Architecture, source: str) -> None:
    """Print predicted beside measured for each call, then the rates."""
    style = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)}
    table = Table(title=f"Predicted and measured ({source})", **style)  # type: ignore[arg-type]
    for position, column in enumerate(
        ("op", "layout", "dtype", "layer", "kernel", "limit", "predicted us", "measured us", "ratio", "calibrated us")
    ):
        table.add_column(column, justify="left" if position < 6 else "right")
    for c in calibration.calls:
        call, main = c.prediction.call, c.prediction.main
        ratio = c.measured_seconds / c.predicted_seconds
        times = (c.predicted_seconds, c.measured_seconds)
        cells = [f"{seconds * 1e6:.1f}" for seconds in times]
        name = main.kernel.removeprefix("depthwise_")
        table.add_row(
            call.op, call.layout, call.dtype, call.name, name, main.limit, *cells, f"{ratio:.2f}",
            f"{c.calibrated_seconds * 1e6:.1f}",
        )  # fmt: skip
    console.print(table)
    assumed, fitted = (_rates_in_words(a) for a in (architecture, corrected(architecture, calibration.rates)))
    rates = Table(title="Rates", **style)  # type: ignore[arg-type]
    for position, column in enumerate(("unit", "assumed", "fitted", "time over assumed", "calls that it limits")):
        rates.add_column(column, justify="left" if position < 3 else "right")
    for rate in calibration.rates:
        told = rate.factor is not None
        shown = f"{rate.factor:.2f}" if told else "cannot be told"
        rates.add_row(rate.unit, assumed[rate.unit], fitted[rate.unit] if told else "", shown, str(rate.calls))
    console.print(rates)
    before, after = calibration.error_before, calibration.error_after
    console.print(
        f"Predictions are off by {before:.0%} on average, with the fitted rates by {after:.0%}. What is fitted belongs "
        "into rates.py, with where it was measured.",
        highlight=False,
        soft_wrap=True,
    )


def document(calibration: Calibration) -> dict[str, Any]:
    """The JSON form."""
    return {
        "error_before": calibration.error_before,
        "error_after": calibration.error_after,
        "rates": [vars(rate) for rate in calibration.rates],
        "calls": [
            {
                "op": c.prediction.call.op,
                "layout": c.prediction.call.layout,
                "dtype": c.prediction.call.dtype,
                "layer": c.prediction.call.name,
                "predicted_us": c.predicted_seconds * 1e6,
                "measured_us": c.measured_seconds * 1e6,
                "calibrated_us": c.calibrated_seconds * 1e6,
            }
            for c in calibration.calls
        ],
    }
