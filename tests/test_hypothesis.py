"""Any geometry, dtype, layout, activation and slicing: forward and gradients against float64."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import checking
from tests.cases import LAYOUTS, Case
from tests.reference import ACTIVATIONS, DTYPES

SETTINGS = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

length = st.one_of(st.integers(1, 9), st.sampled_from([14, 15, 16, 17, 28, 31, 33]))
channels = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 33]))


@st.composite
def geometries(draw: st.DrawFn, op: str) -> Case:
    """A problem of the family `op` whose output has at least one pixel."""
    n, h, w = draw(st.integers(1, 3)), draw(length), draw(length)
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    r, s = (1, 1) if op == "pointwise" else (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    stride, dilation, padding = draw(pairs), draw(pairs), (draw(st.integers(0, 5)), draw(st.integers(0, 5)))
    if op == "depthwise":
        groups = draw(channels)
        c, k = groups, groups * draw(st.integers(1, 3))
    elif op == "grouped":
        groups = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 8]))
        c, k = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    else:
        groups, c, k = 1, draw(channels), draw(channels)
    case = Case("hypothesis", n, c, h, w, k, r, s, stride, padding, dilation, groups)
    assume(min(case.output_shape) >= 1)
    assume(case.output_shape[0] * c * case.output_shape[2] * case.output_shape[3] * r * s < 200_000)
    return case


def calls(op: str) -> Any:
    return given(
        case=geometries(op),
        dtype=st.sampled_from(DTYPES),
        layout=st.sampled_from(sorted(LAYOUTS)),
        activation=st.sampled_from([None, None, *ACTIVATIONS]),
        with_bias=st.booleans(),
        threads=st.sampled_from([1, 2]),
    )


def _check(
    op: str, case: Case, dtype: torch.dtype, layout: str, activation: str | None, with_bias: bool, threads: int
) -> None:
    torch.set_num_threads(threads)
    checking.check_random_values(op, case, dtype, layout, activation, with_bias, backend="cpu")
    checking.check_integer_values(op, case, dtype, layout, backend="cpu")


@SETTINGS
@calls("depthwise")
def test_depthwise(**call: Any) -> None:
    _check("depthwise", **call)


@SETTINGS
@calls("grouped")
def test_grouped(**call: Any) -> None:
    _check("grouped", **call)


@SETTINGS
@calls("pointwise")
def test_pointwise(**call: Any) -> None:
    _check("pointwise", **call)
