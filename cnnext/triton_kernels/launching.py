"""Launches a kernel: which of its settings, through whom, on which device.

The first of the candidate settings is used as it is, unless `cnnext.backends.benchmark` is set: then the first call of
a problem times all of them, and the fastest is kept for the life of the process; not so under
torch.use_deterministic_algorithms. Nothing happens at import.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Settings", "can_trace", "compile_options", "remembered", "run", "settings", "tracing", "unique"]

# What fits the first dimension of a grid.
_MOST_PROGRAMS = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """How a kernel is compiled: block sizes by the names of the kernel's arguments, warps, pipeline stages."""

    blocks: dict[str, int]
    warps: int
    stages: int

    def __str__(self) -> str:
        sizes = " ".join(f"{name}={size}" for name, size in self.blocks.items())
        return f"{sizes} warps={self.warps} stages={self.stages}"


def settings(warps: int, stages: int = 2, **blocks: int) -> Settings:
    """Settings with these block sizes."""
    return Settings(blocks, warps, stages)


def unique(candidates: Iterable[Settings]) -> tuple[Settings, ...]:
    """The candidates without repetitions, which small problems make; the order stays."""
    kept: list[Settings] = []
    for one in candidates:
        if one not in kept:
            kept.append(one)
    return tuple(kept)


#: For functions that give candidate settings: every call of a layer asks them the same.
remembered = functools.lru_cache(maxsize=4096)


def compile_options(chosen: Settings) -> dict[str, Any]:
    """Options of Triton's compiler.

    A product and the sum that takes it are one instruction: FMA is what the kernels count on, and from Triton 3.10 on
    no longer the default.
    """
    return {"num_warps": chosen.warps, "num_stages": chosen.stages, "enable_fp_fusion": True}


_local = threading.local()


def can_trace() -> bool:
    """Whether torch.compile can take the kernels into a graph: not those that Triton's interpreter runs."""
    from triton import knobs

    return not knobs.runtime.interpret


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """While this is open on the calling thread, launches are traced into the graph of torch.compile instead of run."""
    _local.traced = True
    try:
        yield
    finally:
        _local.traced = False


_fastest: dict[tuple[Any, ...], Settings] = {}


def run(
    kernel: Any,
    candidates: Sequence[Settings],
    programs: Callable[[Settings], int],
    arguments: dict[str, Any],
) -> None:
    """Launches `kernel` with one of its candidate settings.

    Args:
        kernel: a function decorated with triton.jit.
        candidates: settings that suit the problem, the one expected to be fastest first.
        programs: how many programs some settings need.
        arguments: the kernel's arguments but for the block sizes. The tensors are on one device.

    Raises:
        RuntimeError: more programs are needed than a grid can have.
    """
    if getattr(_local, "traced", False):
        # NOTE: these are the options that Inductor passes on. Whether there is FMA is then Triton's default.
        options = {"num_warps": candidates[0].warps, "num_stages": candidates[0].stages}
        _launch(torch.library.wrap_triton(kernel), candidates[0], options, programs, arguments)
        return
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _run(kernel, candidates, programs, arguments)
        return
    _run(kernel, candidates, programs, arguments)


def _run(
    kernel: Any, candidates: Sequence[Settings], programs: Callable[[Settings], int], arguments: dict[str, Any]
) -> None:
    """`run` on the current device."""
    chosen = _choose(kernel, candidates, programs, arguments)
    _launch(kernel, chosen, compile_options(chosen), programs, arguments)


def _launch(
    kernel: Any,
    chosen: Settings,
    options: dict[str, Any],
    programs: Callable[[Settings], int],
    arguments: dict[str, Any],
) -> None:
    count = programs(chosen)
    if count > _MOST_PROGRAMS:
        raise RuntimeError(f"{count} programs are needed, but a grid has {_MOST_PROGRAMS} at most")
    kernel[(count,)](**arguments, **chosen.blocks, **options)


def _choose(
    kernel: Any, candidates: Sequence[Settings], programs: Callable[[Settings], int], arguments: dict[str, Any]
) -> Settings:
    from cnnext import backends

    # Settings add up in different orders, and another may be the fastest in another process.
    if not backends.benchmark or len(candidates) == 1 or torch.are_deterministic_algorithms_enabled():
        return candidates[0]
    key = (
        kernel,
        *((value.dtype, value.device) if isinstance(value, Tensor) else value for value in arguments.values()),
    )
    if key not in _fastest:
        if _is_capturing():
            return candidates[0]
        times = [_time(functools.partial(_run, kernel, (chosen,), programs, arguments)) for chosen in candidates]
        _fastest[key] = candidates[times.index(min(times))]
    return _fastest[key]


def _is_capturing() -> bool:
    """Whether a CUDA graph is recorded, which a timing would break."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _time(launch: Callable[[], None]) -> float:
    """Median milliseconds of a launch."""
    from triton.testing import do_bench

    return do_bench(launch, warmup=5, rep=20, return_mode="median")
