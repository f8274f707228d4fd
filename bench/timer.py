"""Times contenders against each other, fairly.

The contenders take turns within short rounds, and every other round runs in reverse order, so that a machine that
slows down or speeds up does so for all of them. A result is a median with the 20th and 80th percentile beside it,
never a minimum and never a mean.

On a CPU a sample is the mean of consecutive calls over a time well above the clock's resolution; the caches are as warm
as the call itself leaves them. On a CUDA device each call is a sample of its own, taken by events, with the L2
cache flushed before it, outside of the timed window.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

#: What one turn of a contender lasts, in seconds, unless a single call is longer.
_TURN_SECONDS = 0.003
#: A contender is sampled at least this often.
MIN_ROUNDS = 3
_MAX_SAMPLES = 500


@dataclass(frozen=True)
class Timing:
    """Seconds a call takes: median, 20th and 80th percentile over a number of samples."""

    median: float
    p20: float
    p80: float
    samples: int


class Clock(Protocol):
    """Takes samples of how long a call takes."""

    def sample(self, call: Callable[[], object], seconds: float) -> list[float]:
        """Run ``call`` for about ``seconds``, at least once, and return one or more samples, in seconds a call."""
        ...


class CpuClock:
    """Wall time of consecutive calls, as one sample."""

    def sample(self, call: Callable[[], object], seconds: float) -> list[float]:
        calls = 0
        start = now = time.perf_counter()
        # Reading the clock after each call costs about 50 ns, and keeps a turn short if the machine is suddenly slow.
        while calls == 0 or now - start < seconds:
            call()
            calls += 1
            now = time.perf_counter()
        return [(now - start) / calls]


class CudaClock:
    """Device time of each call between two events, with a cold L2. As many samples as calls.

    The flush also keeps the device busy while the host enqueues the call, so that a short kernel is not charged for
    the time its launch takes on the host.
    """

    _CALLS_BETWEEN_SYNCHRONISATIONS = 4

    def __init__(self, device: torch.device) -> None:
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._device = device
        self._flush_buffer = torch.empty(max(4 * l2_bytes, 256 << 20), dtype=torch.int8, device=device)

    def sample(self, call: Callable[[], object], seconds: float) -> list[float]:
        samples: list[float] = []
        start = time.perf_counter()
        while not samples or time.perf_counter() - start < seconds:
            samples += self._timed_calls(call)
        return samples

    def _timed_calls(self, call: Callable[[], object]) -> list[float]:
        events = []
        with torch.cuda.device(self._device):
            for _ in range(self._CALLS_BETWEEN_SYNCHRONISATIONS):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._flush_buffer.zero_()
                begin.record()
                call()
                end.record()
                events.append((begin, end))
            torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1000 for begin, end in events]


class Budget:
    """Spreads the time until a deadline over what is still to be measured.

    What takes longer than its share, or runs beside the measurements, shortens the shares of all that follow, so that a
    run ends near its deadline on a slow machine too.

    Args:
        seconds: until the deadline, from now.
        weight: the sum of the weights that `take` will be called with.
        now: returns the time in seconds.

    Example:
        >>> budget = Budget(12.0, weight=4.0, now=lambda: 0.0)
        >>> budget.take(1.0), budget.take(3.0)
        (3.0, 12.0)
    """

    def __init__(self, seconds: float, weight: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._deadline = now() + seconds
        self._weight = weight

    def take(self, weight: float) -> float:
        """Return the seconds for a case of this weight, 0 after the deadline."""
        remaining = max(0.0, self._deadline - self._now())
        share = remaining * min(1.0, weight / self._weight) if self._weight > 0 else 0.0
        self._weight -= weight
        return share


def clock_for(device: torch.device) -> Clock:
    """Return the clock that fits ``device``."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the value below which ``percent`` % of the samples lie, interpolated linearly.

    Raises:
        ValueError: if there are no samples or ``percent`` is outside [0, 100].

    Example:
        >>> percentile([4.0, 1.0, 3.0, 2.0], 50)
        2.5
    """
    if not samples:
        raise ValueError("percentile of no samples")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent must be in [0, 100], got {percent}")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    low = math.floor(position)
    high = math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise_samples(samples: Sequence[float]) -> Timing:
    """Reduce samples to a `Timing`."""
    return Timing(
        median=percentile(samples, 50),
        p20=percentile(samples, 20),
        p80=percentile(samples, 80),
        samples=len(samples),
    )


def timing_json(timing: Timing, images: int) -> dict[str, float | int]:
    """The form of a `Timing` in result files: milliseconds a call, and images a second at so many images a call."""
    return {
        "ms": timing.median * 1e3,
        "ms_p20": timing.p20 * 1e3,
        "ms_p80": timing.p80 * 1e3,
        "images_per_s": images / timing.median,
        "samples": timing.samples,
    }


def compare(
    contenders: Mapping[str, Callable[[], object]],
    clock: Clock,
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
) -> dict[str, Timing]:
    """Time the contenders in turns.

    Args:
        contenders: calls by name. Each is called before it is timed.
        clock: see `clock_for`.
        seconds: time to spend on all contenders together. ``min_rounds`` rounds are run whatever they take; with no
            time at all, one.
        min_rounds: a round is one turn of each contender.

    Returns:
        One `Timing` for each name.

    Raises:
        ValueError: if there are no contenders.
    """
    if not contenders:
        raise ValueError("nothing to time")
    if seconds <= 0:
        min_rounds = 1
    started = time.perf_counter()
    names = list(contenders)
    for name in names:
        # The first calls may build primitives, tune or compile, and fill the allocator's cache.
        clock.sample(contenders[name], 0.0)
        clock.sample(contenders[name], _TURN_SECONDS)

    samples: dict[str, list[float]] = {name: [] for name in names}
    gc_was_enabled = gc.isenabled()
    gc.disable()
    try:
        rounds = 0
        while rounds < min_rounds or (
            time.perf_counter() - started < seconds and min(map(len, samples.values())) < _MAX_SAMPLES
        ):
            for name in names if rounds % 2 == 0 else reversed(names):
                samples[name] += clock.sample(contenders[name], _TURN_SECONDS)
            rounds += 1
    finally:
        if gc_was_enabled:
            gc.enable()
    return {name: summarise_samples(samples[name]) for name in names}
