"""Which kernels run a convolution, and why.

Backends, in the order in which they are tried: "cuda" (cnnext's CUDA kernels), "triton" (the same in Triton), "cpu"
(cnnext's C++ kernels) and "aten" (PyTorch's own convolution, which takes whatever F.conv2d takes). The first that can
run a call runs it, but where the cost model (cnnext/backends/cost_model.py) expects aten to be faster than "cpu".

`benchmark` is a setting, False unless it is assigned to. While it is True, what runs is the fastest by measurement: the
first call of a problem times the backends that can run it, forward and each gradient apart, on the device at hand. A
problem is the sizes, the dtype, the layout, and what can be set of the device, such as the threads. Times are kept in a
file of the user's cache directory (CNNEXT_CACHE_DIR names another), so the next start of the program measures nothing.
Nothing is measured under torch.compile, while a CUDA graph is captured, or with torch.use_deterministic_algorithms:
there the cost model decides. Which backend is fastest may change from machine to machine and so may the last bits.

>>> import torch, cnnext
>>> "aten" in cnnext.backends.available()
True
>>> x, w = torch.randn(1, 8, 16, 16), torch.randn(8, 1, 3, 3)
>>> with cnnext.backends.use("aten"):
...     y = cnnext.functional.depthwise_conv2d(x, w, padding=1)
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from cnnext import _extension
from cnnext.backends import aten, cost_model, cpu, cuda, measured, triton
from cnnext.backends.call import Backend, ConvCall
from cnnext.backends.operators import needs_gradient

__all__ = ["BackendError", "available", "chosen", "empty_cpu_pool", "explain", "forget_measurements", "use"]

_BACKENDS: dict[str, Backend] = {module.name: cast(Backend, module) for module in (cuda, triton, cpu, aten)}

# The backends that can run anything in this process. Fixed after import, as the shared objects are.
_AVAILABLE: tuple[Backend, ...] = tuple(b for b in _BACKENDS.values() if b.unavailable() is None)

# By the type of the input's device, the backends that are tried on it. On the CPU "triton" is an interpreter for tests.
_TRIED_ON = {"cpu": ("cpu", "aten"), "cuda": ("cuda", "triton", "aten")}
_CANDIDATES: dict[str, tuple[Backend, ...]] = {
    device: tuple(b for b in _AVAILABLE if b.name in names) for device, names in _TRIED_ON.items()
}

#: Whether any backend here has a kernel for the whole separable block: else there is no need to ask.
HAS_SEPARABLE = any(hasattr(backend, "run_separable") for backend in _AVAILABLE)

#: Whether the fastest backend by measurement runs a call; see above.
benchmark = False

# What `use` has set: a backend for every call that does not name one, or None to choose for each call.
_in_use: Backend | None = None


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot run the call."""


def available() -> list[str]:
    """Names of the backends that can run in this process, in the order in which they are tried."""
    return [backend.name for backend in _AVAILABLE]


def _lookup(name: str) -> Backend:
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}: expected one of {', '.join(map(repr, _BACKENDS))}")
    return _BACKENDS[name]


class use:
    """Makes one backend run every convolution of cnnext in this process, until changed or for a `with` block.

    Args:
        name: "cuda", "triton", "cpu" or "aten"; None to let cnnext choose for each call, which is the default.

    Raises:
        ValueError: the name is unknown.
        BackendError: (at a call) the backend cannot run it; the message says why.

    >>> with use("aten"):
    ...     pass
    """

    def __init__(self, name: str | None) -> None:
        global _in_use
        self._previous = _in_use
        _in_use = None if name is None else _lookup(name)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _in_use
        _in_use = self._previous


def run(call: ConvCall, name: str | None = None) -> Tensor:
    """Runs `call` on the backend called `name`, else on the one set by `use`, else on the one chosen for it."""
    if name is None and _in_use is None and not benchmark:  # as `choose` would, a step shorter: the way of most calls
        return _unmeasured(call).run(call)
    return choose(call, name).run(call)


def choose(call: ConvCall, name: str | None = None) -> Backend:
    """The backend that runs `call`, by the rules of `run`.

    Raises:
        BackendError: one is asked for by name, and cannot run it.
    """
    wanted = _in_use if name is None else _lookup(name)
    if wanted is not None:
        reason = wanted.unavailable() or wanted.refuses(call)
        if reason is not None:
            raise BackendError(f"backend {wanted.name!r} cannot run this {call.family} convolution: {reason}")
        return wanted
    if benchmark and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        return _selector.select(call)
    return _unmeasured(call)


def _unmeasured(call: ConvCall) -> Backend:
    """The first backend that can run `call`, or aten where the cost model expects it to be faster."""
    for backend in _CANDIDATES.get(call.input.device.type, _AVAILABLE):
        if backend.refuses(call) is None:
            if call.family != "depthwise" and backend.name == "cpu" and cost_model.prefers_aten(call):
                return _BACKENDS["aten"]
            return backend
    raise AssertionError("aten refuses nothing")


_selector = measured.Selector(_unmeasured, _CANDIDATES, _BACKENDS)


def run_separable(
    call: ConvCall, pointwise_weight: Tensor, pointwise_bias: Tensor | None, activation: int, name: str | None = None
) -> Tensor | None:
    """The depthwise convolution of `call`, a 1x1 convolution and an activation in one kernel of the backend for `call`.

    Returns:
        None if the backend has no such kernel, or not for this call.
    """
    fused = getattr(choose(call, name), "run_separable", None)
    return None if fused is None else fused(call, pointwise_weight, pointwise_bias, activation)


def is_forced(name: str | None) -> bool:
    """Whether a call that asks for the backend `name` insists on one, by that name or by `use`."""
    return name is not None or _in_use is not None


def chosen(op: str, *args: Any, **kwargs: Any) -> dict[str, str]:
    """Names the backend that runs a call, by direction.

    Args:
        op: as of `explain`, and so are the rest.
        *args: the arguments of the function.
        **kwargs: likewise.

    Returns:
        "forward", and "backward_input" and "backward_weight" where the call needs these gradients, to names.

    Raises:
        ValueError: `op` is not one of the three.
        BackendError: a backend is asked for by name, and cannot run the call.

    >>> import torch
    >>> chosen("pointwise_conv2d", torch.zeros(1, 8, 4, 4), torch.zeros(8, 8, 1, 1))
    {'forward': 'cpu'}
    """
    call, name = _make_call(op, *args, **kwargs)
    backend = choose(call, name)
    times = _measured_times(call, name)
    if times is not None:
        return measured.choices(times, _unmeasured(call).name)
    return dict.fromkeys(measured.directions(call), backend.name)


def explain(op: str, *args: Any, **kwargs: Any) -> str:
    """Says which backend runs a call, and why the others do not. While `benchmark` is set, it measures what it has to.

    Args:
        op: "depthwise_conv2d", "grouped_conv2d", "pointwise_conv2d", or "separable_conv2d".
        *args: the arguments of the function of that name in cnnext.functional.
        **kwargs: likewise.

    Returns:
        One line a backend, in the order in which they are tried. That of the chosen one says of a separable block
        whether it runs in one kernel or in two, and why.

    Raises:
        ValueError: `op` is not one of the four.

    >>> import torch
    >>> print(explain("pointwise_conv2d", torch.zeros(1, 8, 4, 4, dtype=torch.int64), torch.zeros(8, 8, 1, 1)))
    ... # doctest: +ELLIPSIS
    cuda: ...
    triton: ...
    cpu: ...
    aten: chosen
    """
    if op == "separable_conv2d":
        return _explain_separable(*args, **kwargs)
    call, name = _make_call(op, *args, **kwargs)
    return "\n".join(f"{backend}: {verdict}" for backend, verdict in _verdicts(call, name).items())


def _explain_separable(*args: Any, **kwargs: Any) -> str:
    from cnnext import functional  # which imports this module

    call, weight, bias, name = functional.make_separable_call(*args, **kwargs)
    verdicts = _verdicts(call, name)
    runs = choose(call, name)
    explain_block = getattr(runs, "explain_separable", None)
    if explain_block is None:
        how = "two calls, because it has no kernel for the block"
    elif needs_gradient(call.input, call.weight, call.bias, weight, bias):
        how = "two calls, because a gradient will be needed"
    else:
        how = explain_block(call, weight)
    verdicts[runs.name] += f"; {how}"
    return "\n".join(f"{backend}: {verdict}" for backend, verdict in verdicts.items())


def _verdicts(call: ConvCall, name: str | None) -> dict[str, str]:
    """What `explain` says of each backend, by its name."""
    wanted = _in_use if name is None else _lookup(name)
    times = _measured_times(call, name)
    if times is None and wanted is None:
        runs, rule = _unmeasured(call), None
        if runs.name == "aten" and call.input.is_cpu and _BACKENDS["cpu"].refuses(call) is None:
            rule = cost_model.prefers_aten(call)
    verdicts = {}
    for backend in _BACKENDS.values():
        reason = backend.unavailable() or backend.refuses(call)
        if wanted is not None and backend is not wanted:
            verdict = f"not asked, {wanted.name!r} is asked for by name"
        elif reason is not None:
            verdict = f"cannot run this: {reason}"
        elif wanted is not None:
            verdict = "chosen"
        elif backend.name not in _TRIED_ON.get(call.input.device.type, _BACKENDS):
            verdict = f"could run this, but is not used on {call.input.device.type} unless asked for by name"
        elif times is not None:
            verdict = _measured_verdict(backend.name, times, _unmeasured(call).name)
        elif backend is runs:
            verdict = "chosen" if rule is None else f"chosen by the cost model: {rule}"
        else:
            verdict = f"could run this, but {'an earlier one' if rule is None else runs.name} is chosen"
        verdicts[backend.name] = verdict
    return verdicts


def _make_call(op: str, *args: Any, **kwargs: Any) -> tuple[ConvCall, str | None]:
    from cnnext import functional  # which imports this module

    return functional.make_call(op, *args, **kwargs)


def _measured_times(call: ConvCall, name: str | None) -> dict[str, measured.Times] | None:
    return _selector.times(call) if benchmark and not is_forced(name) else None


def _measured_verdict(name: str, times: Mapping[str, measured.Times], default: str) -> str:
    won = [direction for direction, winner in measured.choices(times, default).items() if winner == name]
    verdict = "chosen" if len(won) == len(times) else f"chosen for {' and '.join(won)}" if won else "could run this"
    figures = (f"{direction} {seconds[name] * 1e3:.3g} ms" for direction, seconds in times.items() if name in seconds)
    return f"{verdict}, measured: {', '.join(figures)}"


def forget_measurements() -> None:
    """Drops the times that `benchmark` has measured: those in memory, and those in files, of all devices."""
    _selector.clear()


def empty_cpu_pool() -> int:
    """Gives the memory that the CPU kernels keep for their next outputs back to the system.

    Outputs of 1 MiB and more lie in blocks that are kept when the tensor is freed, 256 MiB at most. The environment
    variable CNNEXT_CPU_POOL_MIB sets another limit before the first such output; 0 keeps nothing.

    Returns:
        Bytes given back. Blocks of tensors that are alive are not among them.

    >>> empty_cpu_pool() >= 0
    True
    """
    if not _extension.cpu.loaded:
        return 0
    function = _extension.cpu.library().cnnext_cpu_empty_pool
    function.restype = ctypes.c_uint64
    return int(function())
