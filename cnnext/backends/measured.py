"""Selection by measurement: times what can run a problem, once, and remembers the fastest.

`Selector.select` gives the backend for a call. What was measured before, in this process or in one that left it in the
file, is looked up. Nothing is measured where that would disturb what goes on: while a CUDA graph is captured, a program
is compiled, traced or transformed, or results must be the same bits from run to run. There the cost model decides.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cnnext import _extension, ops
from cnnext.backends import mixed, operators
from cnnext.backends.call import Backend, ConvCall
from cnnext.backends.problem import Problem
from cnnext.backends.store import Store, Times, path_for, remove_all
from cnnext.ops import Geometry

__all__ = ["Selector", "Times", "choices", "directions", "fastest", "time_calls"]

#: The cost model's choice is kept unless another is faster by this factor: less than that is noise.
_MARGIN = 1.02
#: What takes this many times as long as the fastest, in a first look, is not timed again.
_HOPELESS = 3.0
_ROUNDS = 7
_LEAST_ROUNDS = 3
_TURN_SECONDS = 1e-3
_MOST_SECONDS = 0.1


# --------------------------------------------------------------------------------------------------------------- timing


def _cpu_seconds(call: Callable[[], object], seconds: float) -> float:
    """Mean seconds of calls that together take about `seconds`, at least of one."""
    calls = 0
    start = now = time.perf_counter()
    while calls == 0 or now - start < seconds:
        call()
        calls += 1
        now = time.perf_counter()
    return (now - start) / calls


def _cuda_seconds(call: Callable[[], object], seconds: float) -> float:
    """The same on the current stream, from the first call's start to the last one's end on the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    calls = 0
    start = time.perf_counter()
    begin.record()
    while calls == 0 or time.perf_counter() - start < seconds:
        call()
        calls += 1
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / calls


def time_calls(calls: Mapping[str, Callable[[], object]], device_type: str) -> Times:
    """Times calls against each other: in turns, so that a machine that slows down does so for all.

    Args:
        calls: by name; one that raises is left out.
        device_type: "cpu" or "cuda".

    Returns:
        Seconds by name: the median of the rounds; of a hopeless one, the first look.
    """
    sample = _cuda_seconds if device_type == "cuda" else _cpu_seconds
    started = time.perf_counter()
    samples: dict[str, list[float]] = {}
    for name, call in calls.items():
        try:
            sample(call, 0.0)  # builds primitives, compiles, tunes
            samples[name] = [sample(call, 0.0)]
        except Exception:  # it cannot run this after all, memory is short, or a compiler gives up
            continue
    fastest = min((values[0] for values in samples.values()), default=0.0)
    timed = [name for name, values in samples.items() if values[0] <= _HOPELESS * fastest]
    if len(timed) > 1:
        for name in timed:
            samples[name] = []
        for turn in range(_ROUNDS):
            if turn >= _LEAST_ROUNDS and time.perf_counter() - started > _MOST_SECONDS:
                break
            for name in timed if turn % 2 == 0 else reversed(timed):
                samples[name].append(sample(calls[name], _TURN_SECONDS))
    return {name: statistics.median(values) for name, values in samples.items()}


# -------------------------------------------------------------------------------------------------------------- devices


@functools.cache
def _build() -> str:
    """A name for the kernels: what is measured with one build says nothing about the next."""
    digest = hashlib.sha256()
    for extension in (_extension.cpu, _extension.cuda):
        if extension.path is not None:
            stat = extension.path.stat()
            digest.update(f"{extension.path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _identity(device: torch.device) -> dict[str, Any]:
    """What times depend on besides problem and setting."""
    # What newer versions of torch say about the processor: its name, features and caches.
    cpu = {"cpu_name": platform.processor() or platform.machine(), **getattr(torch.cpu, "get_capabilities", dict)()}
    identity: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu["cpu_name"],
        "torch": torch.__version__,
        "build": _build(),
    }
    if device.type == "cpu":
        identity["capability"] = [torch.backends.cpu.get_cpu_capability(), cpu]
        identity["cores"] = os.cpu_count()
    else:
        identity["capability"] = list(torch.cuda.get_device_capability(device))
        identity["cuda"] = torch.version.cuda
        identity["cudnn"] = torch.backends.cudnn.version()
    return identity


@functools.cache
def _store(device: torch.device) -> Store:
    identity = _identity(device)
    return Store(path_for(f"{device.type} {identity['device']}"), identity)


def _setting(device: torch.device) -> tuple[Any, ...]:
    """What can be set while a program runs, and changes which backend is fastest."""
    if device.type == "cpu":
        return (torch.get_num_threads(), torch._C._get_mkldnn_enabled())
    cudnn = torch.backends.cudnn
    return (cudnn.enabled, cudnn.benchmark, cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def _can_measure(*tensors: Tensor | None) -> bool:
    """Whether calls may be run on the side, now and with these tensors."""
    return not (
        torch.are_deterministic_algorithms_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap and the like
        or any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors if tensor is not None)
        or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
    )


# ------------------------------------------------------------------------------------------------------------ selection


class _Mixed:
    """Runs each direction on a backend of its own. A `Backend`, so that it stands where one does."""

    def __init__(self, families: Mapping[str, ops.Family], name: str) -> None:
        self.name = name
        self.families = families

    def unavailable(self) -> str | None:
        return None

    def refuses(self, call: ConvCall) -> str | None:
        return None

    def run(self, call: ConvCall) -> Tensor:
        return operators.run(call, self.families)


class Selector:
    """Chooses among backends by their measured times.

    Args:
        default: the backend that the cost model chooses for a call.
        candidates: the backends that may run a call on a type of device.
        by_name: every backend.
    """

    def __init__(
        self,
        default: Callable[[ConvCall], Backend],
        candidates: Mapping[str, Sequence[Backend]],
        by_name: Mapping[str, Backend],
    ) -> None:
        self._default = default
        self._candidates = candidates
        self._by_name = by_name
        self._lock = threading.RLock()
        # Times by device and problem; the file's are in it once the device has been asked for.
        self._times: dict[torch.device, dict[str, Times]] = {}
        # The choice by everything that it is made from, so that a call that was seen before costs one look-up.
        self._chosen: dict[tuple[Any, ...], Backend] = {}
        # The fastest backend of a direction, for the mixed operators.
        self._fastest: dict[tuple[Any, ...], Backend] = {}

    def clear(self) -> None:
        """Forgets what was measured, in the files too."""
        with self._lock:
            remove_all()
            self.forget()

    def forget(self) -> None:
        """Forgets what this process has measured and read, and where the files are; the files stay."""
        with self._lock:
            for memory in (self._times, self._chosen, self._fastest):
                memory.clear()
            _store.cache_clear()

    def select(self, call: ConvCall) -> Backend:
        """The backend for `call`, measured now if it was not before and that is possible."""
        _, input, weight, bias, stride, padding, dilation, groups, activation = call
        device = input.device
        # Under a mode of fake tensors, tracing or counting, sizes may be symbols, and calls are no calls.
        if device.type not in self._candidates or torch._C._len_torch_dispatch_stack() > 0:
            return self._default(call)
        key = (
            call.family,
            input.shape,
            input.stride(),
            input.dtype,
            device,
            weight.shape,
            weight.stride(),
            bias is None,
            *stride,
            *padding,
            *dilation,
            groups,
            activation,
            torch.is_grad_enabled()
            and (input.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad),
            torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type),
            _setting(device),
        )
        chosen = self._chosen.get(key)
        if chosen is None:
            times = self.times(call)
            if times is None:
                return self._default(call)
            chosen = self._chosen[key] = self._combine(call, times)
        return chosen

    def times(self, call: ConvCall) -> dict[str, Times] | None:
        """Seconds of each backend, by direction that `call` needs; None if there is nothing to choose."""
        device = call.input.device
        dtypes = {operators.dtype_seen(call.input), operators.dtype_seen(call.weight)}
        if call.input.dim() != 4 or call.weight.dim() != 4 or len(dtypes) > 1:
            return None  # the call is wrong
        candidates = [b for b in self._candidates.get(device.type, ()) if b.refuses(call) is None]
        if len(candidates) < 2:
            return None
        default = self._default(call).name
        problems = _problems(call)
        with self._lock:
            known = self._known(device)
            setting = ",".join(map(str, _setting(device)))
            result = {}
            for direction, problem in problems.items():
                key = problem.key(setting)
                times = known.get(key, {})
                if not _covers(times, candidates):
                    if not _can_measure(call.input, call.weight, call.bias):
                        return None
                    times = _measure(call, problem, candidates)
                    if not times:
                        return None
                    known[key] = times
                    _store(device).add(key, times)
                result[direction] = times
                self._fastest[problem, device, _setting(device)] = self._by_name[fastest(times, default)]
        return result

    def _known(self, device: torch.device) -> dict[str, Times]:
        if device not in self._times:
            self._times[device] = _store(device).read()
        return self._times[device]

    def _combine(self, call: ConvCall, times: Mapping[str, Times]) -> Backend:
        names = choices(times, self._default(call).name)
        if len(set(names.values())) == 1:
            return self._by_name[names["forward"]]
        return _Mixed(self._mixed_families, names["forward"])

    @functools.cached_property
    def _mixed_families(self) -> Mapping[str, ops.Family]:
        return mixed.families(lambda problem, tensor: self._families_for(problem, tensor))

    def _families_for(self, problem: Problem, tensor: Tensor) -> Mapping[str, ops.Family | ops.Implementations]:
        """The operators of the backend for a direction. What was never measured, a second derivative, aten runs."""
        backend = self._fastest.get((problem, tensor.device, _setting(tensor.device)), self._by_name["aten"])
        return backend.families


def fastest(times: Times, default: str) -> str:
    """The name of the fastest; the default unless another is clearly faster.

    >>> fastest({"cpu": 1.01, "aten": 1.0}, "cpu"), fastest({"cpu": 1.1, "aten": 1.0}, "cpu")
    ('cpu', 'aten')
    """
    best = min(times, key=lambda name: times[name])
    return default if times.get(default, float("inf")) <= _MARGIN * times[best] else best


def choices(times: Mapping[str, Times], default: str) -> dict[str, str]:
    """The name of the backend for each direction."""
    return {direction: fastest(seconds, default) for direction, seconds in times.items()}


def directions(call: ConvCall) -> list[str]:
    """The directions that `call` needs, or its gradient will."""
    needed = {"forward": True, "backward_input": False, "backward_weight": False}
    if operators.needs_gradient(call.input, call.weight, call.bias):
        needed |= {"backward_input": call.input.requires_grad, "backward_weight": call.weight.requires_grad}
    return [direction for direction, is_needed in needed.items() if is_needed]


def _covers(times: Times, candidates: Sequence[Backend]) -> bool:
    return bool(times) and {backend.name for backend in candidates} == set(times)


def _problems(call: ConvCall) -> dict[str, Problem]:
    """The problem of each direction that `call` needs."""
    family, input, weight, bias, stride, padding, dilation, groups, activation = call
    geometry = Geometry(stride, padding, dilation, groups)
    channels_last = ops.channels_last_result(input, weight)
    # With a gradient to come, the activation is a step of its own.
    details = {
        "forward": (bias is not None, 0 if operators.needs_gradient(input, weight, bias) else activation),
        "backward_input": (False, 0),
        "backward_weight": (bias is not None and bias.requires_grad, 0),
    }
    return {
        direction: Problem.of(
            family,
            direction,
            operators.dtype_seen(input),
            input.shape,
            weight.shape,
            geometry,
            channels_last,
            *details[direction],
        )
        for direction in directions(call)
    }


def _measure(call: ConvCall, problem: Problem, candidates: Sequence[Backend]) -> Times:
    """Seconds of each candidate for one direction of `call`, empty if none can run it."""
    type_, direction = call.input.device.type, problem.direction
    with torch.no_grad(), torch.autocast(type_, enabled=False), _on(call.input.device):
        call = call._replace(
            input=call.input.detach().to(problem.dtype),
            weight=call.weight.detach().to(problem.dtype),
            bias=None if call.bias is None else call.bias.detach().to(problem.dtype),
            activation=problem.activation,
        )
        if direction == "forward":
            return time_calls({b.name: functools.partial(b.run, call) for b in candidates}, type_)
        try:
            grad_output = candidates[-1].run(call)
        except RuntimeError:  # the call is wrong
            return {}
        return time_calls({b.name: _gradient(call, problem, b, grad_output) for b in candidates}, type_)


def _gradient(call: ConvCall, problem: Problem, backend: Backend, grad_output: Tensor) -> Callable[[], object]:
    family, input, weight, _, stride, padding, dilation, groups, _ = call
    geometry = ops.FAMILIES[family].join(Geometry(stride, padding, dilation, groups))
    operator: Any = getattr(backend.families[family], problem.direction)
    if problem.direction == "backward_input":
        return functools.partial(operator, grad_output, weight, input.shape, *geometry, problem.channels_last)
    rest = (*geometry, problem.bias, problem.channels_last)
    return functools.partial(operator, grad_output, input, weight.shape, *rest)


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
