"""Measures one case: the error of both sides against float64, and the time of both.

"cnnext" is a module of cnnext, "pytorch" is `nn.Conv2d` (or the network made of it) with the same weights, input, dtype
and memory format, which is how PyTorch is told to use its best kernel for that layout.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import cnnext
from bench import networks
from bench.cases import KINDS, LAYOUTS, PASSES, Layer, LayerShape, input_size, to_pytorch
from bench.timer import Budget, Clock, compare, timing_json

#: A case of a network takes a larger share of the time than one of a layer: its calls are that much longer.
NETWORK_WEIGHT = 6.0
#: A network's accuracy is taken on this many images at most: float64 gradients of a large batch would fill the memory.
_CHECKED_IMAGES = 16
SIDES = ("cnnext", "pytorch")
NETWORK_PASSES = ("inference", "training")

Case = dict[str, Any]
Result = torch.Tensor | Sequence[torch.Tensor]
Call = Callable[[], Result]


class Contender(NamedTuple):
    """One side of a case: the call whose result is compared with the reference, and the call that is timed."""

    checked: Call
    timed: Call


@dataclass(frozen=True)
class Settings:
    """What every case of a run shares."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    layouts: tuple[str, ...]
    backward: bool
    #: Passes of networks.
    passes: tuple[str, ...] = NETWORK_PASSES
    #: Only cases in whose id this is found.
    wanted: str = ""
    seed: int = 0

    @property
    def dtype_name(self) -> str:
        """The dtype without its module, such as ``float32``."""
        return str(self.dtype).removeprefix("torch.")


def _move(module: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """Move a module to a device and its filters to a memory format, in place."""
    return module.to(device).to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload, unused-ignore]


# ------------------------------------------------------------------------------------------------------------- accuracy


def relative_error(result: Result, reference: Result) -> float:
    """Return the largest deviation from ``reference``, as a fraction of its largest magnitude.

    Args:
        result: a tensor of any shape and dtype, or a sequence of them, taken together.
        reference: the same shapes, float64.

    Returns:
        ``max |result - reference| / max |reference|``; infinite if the result has a NaN or an infinity.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0], dtype=torch.float64))
        0.25
    """
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    references = [reference] if isinstance(reference, torch.Tensor) else list(reference)
    shapes, true_shapes = ([tuple(t.shape) for t in tensors] for tensors in (results, references))
    if shapes != true_shapes:
        raise ValueError(f"shapes {shapes} are not the reference's {true_shapes}")
    deviation = scale = 0.0
    for mine, true in zip(results, references, strict=True):
        if true.numel() == 0:
            continue
        difference = (mine.detach().to("cpu", torch.float64) - true).abs().max().item()
        if math.isnan(difference):
            return math.inf
        deviation = max(deviation, difference)
        scale = max(scale, true.abs().max().item())
    return deviation / scale if scale > 0 else deviation


def as_references(result: Result) -> Result:
    """The result as a reference for another one: float64 on the CPU."""
    if isinstance(result, torch.Tensor):
        return result.detach().to("cpu", torch.float64)
    return [tensor.detach().to("cpu", torch.float64) for tensor in result]


def is_accurate(error: float, baseline: float | None, dtype: torch.dtype) -> bool:
    """Say whether an error is explained by rounding.

    An error is accepted up to 16 epsilon of the dtype, or up to 8 times the error that PyTorch makes on the same call:
    through a whole network rounding adds up in both sides alike.
    """
    return error <= max(16 * torch.finfo(dtype).eps, 8 * (baseline or 0.0))


# --------------------------------------------------------------------------------------------------------------- timing


def measure(
    case: Case,
    prepare: Mapping[str, Callable[[], Contender]],
    reference: Result,
    settings: Settings,
    clock: Clock,
    budget: Budget,
) -> Case:
    """Fill in the results of a case.

    A side that raises is recorded in ``case["failures"]`` with its message, and the other side is still measured.

    Args:
        case: what identifies the case; not changed.
        prepare: for each of `SIDES`, a function that builds its calls.
        reference: the true result of the checked call, float64 on the CPU.
        settings: of the run.
        clock: of the device.
        budget: of the run; this case takes its share.

    Returns:
        The case with ``error``, ``accurate``, ``failures``, a timing for each side and ``ratio``, which is PyTorch's
        time over cnnext's: above 1, cnnext is faster.
    """
    errors: dict[str, float | None] = dict.fromkeys(SIDES)
    failures: dict[str, str] = {}
    calls: dict[str, Call] = {}
    for side, build in prepare.items():
        try:
            contender = build()
            error = relative_error(contender.checked(), reference)
            if not math.isfinite(error):
                raise ArithmeticError("the result has a NaN or an infinity")
            errors[side], calls[side] = error, contender.timed
        except Exception as failure:
            failures[side] = f"{type(failure).__name__}: {failure}"
    seconds = budget.take(NETWORK_WEIGHT if case["kind"] == "network" else 1.0)
    timings = compare(calls, clock, seconds) if calls else {}

    result = dict(case)
    result["error"] = errors
    ours = errors["cnnext"]
    result["accurate"] = ours is not None and is_accurate(ours, errors["pytorch"], settings.dtype)
    result["failures"] = failures
    for side in SIDES:
        result[side] = timing_json(timings[side], settings.batch) if side in timings else None
    both = all(side in timings for side in SIDES)
    result["ratio"] = timings["pytorch"].median / timings["cnnext"].median if both else None
    return result


# --------------------------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class _LayerData:
    """Input, filter and output gradient of a layer, in the dtype under test but NCHW, and the true results."""

    x: torch.Tensor  # N x C x H x W
    weight: torch.Tensor  # K x C/groups x R x S
    bias: torch.Tensor | None  # K
    dy: torch.Tensor  # N x K x P x Q
    references: dict[str, torch.Tensor]  # by pass, float64 on the CPU


def _layer_data(layer: Layer, settings: Settings) -> _LayerData:
    generator = torch.Generator().manual_seed(settings.seed)
    shape = layer.shape

    def random(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(settings.dtype)

    channels_per_group = shape.C // shape.groups
    weight_scale = (channels_per_group * shape.R * shape.S) ** -0.5
    x = random(settings.batch, shape.C, shape.H, shape.W)
    weight = random(shape.K, channels_per_group, shape.R, shape.S, scale=weight_scale)
    bias = random(shape.K) if shape.bias else None
    dy = random(settings.batch, shape.K, shape.P, shape.Q)

    x64 = x.double().requires_grad_(settings.backward)
    weight64 = weight.double().requires_grad_(settings.backward)
    bias64 = None if bias is None else bias.double()
    y64 = F.conv2d(x64, weight64, bias64, shape.stride, shape.padding, shape.dilation, shape.groups)
    references = {"forward": y64.detach()}
    if settings.backward:
        wanted = {"backward_input": x64, "backward_weight": weight64}
        wanted = {name: tensor for name, tensor in wanted.items() if name in layer.passes}
        gradients = torch.autograd.grad(y64, list(wanted.values()), dy.double())
        references |= dict(zip(wanted, gradients, strict=True))
    return _LayerData(x, weight, bias, dy, references)


def _layer_contender(
    shape: LayerShape,
    data: _LayerData,
    module_class: type[nn.Conv2d],
    layout: str,
    pass_name: str,
    device: torch.device,
) -> Contender:
    """Build the call. A backward pass runs the forward once, here, and then only the wanted gradient."""
    memory_format = LAYOUTS[layout]
    module = shape.make(module_class)
    module.weight = nn.Parameter(data.weight)
    if data.bias is not None:
        module.bias = nn.Parameter(data.bias)
    _move(module, device, layout)
    # Detached, because a pass may ask for its gradient, and the other passes share the data.
    x = data.x.to(device).contiguous(memory_format=memory_format).detach()
    if pass_name == "forward":
        return Contender(partial(module, x), partial(module, x))

    # Only what the pass needs asks for a gradient, so that neither side computes the other one as well.
    module.requires_grad_(False)
    target = x if pass_name == "backward_input" else module.weight
    target.requires_grad_(True)
    y = module(x)
    dy = data.dy.to(device).contiguous(memory_format=memory_format)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(y, target, dy, retain_graph=True)[0]

    return Contender(gradient, gradient)


def _paths(shape: LayerShape, settings: Settings, layout: str) -> dict[str, dict[str, str]]:
    """Return, for each pass, the implementation that each side selects for a layer, such as ``cpu`` and ``Mkldnn``."""
    # Only sizes, dtype, device and memory format matter; the values are as they come.
    options: dict[str, Any] = {"dtype": settings.dtype, "device": settings.device}
    memory_format = LAYOUTS[layout]
    x = torch.randn(settings.batch, shape.C, shape.H, shape.W, **options).contiguous(memory_format=memory_format)
    weight = torch.randn(shape.K, shape.C // shape.groups, shape.R, shape.S, **options)
    weight = weight.contiguous(memory_format=memory_format)
    bias = torch.randn(shape.K, **options) if shape.bias else None

    family = "grouped" if KINDS[shape.kind] is cnnext.GroupedConv2d else shape.kind
    groups = {"groups": shape.groups} if family == "grouped" else {}
    geometry = (shape.stride, shape.padding, shape.dilation)
    select = getattr(torch._C, "_select_conv_backend", None)  # private, and so not to be relied on
    selected = select(x, weight, bias, *map(list, geometry), False, [0, 0], shape.groups) if select else "unknown"

    paths = {}
    for pass_name in PASSES:  # as the calls that are timed: nothing asks for a gradient but what the pass computes
        x.requires_grad_(pass_name == "backward_input")
        weight.requires_grad_(pass_name == "backward_weight")
        try:
            ours = cnnext.backends.chosen(f"{family}_conv2d", x, weight, bias, *geometry, **groups)[pass_name]
        except cnnext.backends.BackendError:  # one is asked for by name: the case says why it cannot run
            ours = "none"
        paths[pass_name] = {"cnnext": ours, "pytorch": str(selected).rpartition(".")[2]}
    return paths


def _layer_case_id(shape: LayerShape, layout: str, pass_name: str) -> str:
    return f"{shape.name}/{layout}/{pass_name}"


def network_case_id(name: str, layout: str, pass_name: str) -> str:
    """The id of a network's case."""
    return f"{name}/{layout}/{pass_name}"


def layer_case_ids(layer: Layer, settings: Settings) -> list[str]:
    """The ids of the cases of a layer, in the order of measuring."""
    passes = [p for p in layer.passes if settings.backward or p == "forward"]
    ids = [_layer_case_id(layer.shape, layout, p) for layout in settings.layouts for p in passes]
    return [case_id for case_id in ids if settings.wanted in case_id]


def measure_layer(
    layer: Layer, settings: Settings, clock: Clock, budget: Budget, announce: Callable[[str], None]
) -> Iterator[Case]:
    """Yield the cases of a layer: each layout, and in it each pass.

    Args:
        layer: what to measure.
        settings: of the run.
        clock: of the device.
        budget: of the run.
        announce: told the id of a case before it starts.
    """
    shape = layer.shape
    wanted = layer_case_ids(layer, settings)
    if not wanted:
        return
    announce(f"{shape.name}: reference in float64")
    data = _layer_data(layer, settings)
    for layout in settings.layouts:
        paths: dict[str, dict[str, str]] = {}
        for pass_name in layer.passes:
            case_id = _layer_case_id(shape, layout, pass_name)
            if case_id not in wanted:
                continue
            paths = paths or _paths(shape, settings, layout)
            announce(case_id)
            case: Case = {
                "id": case_id,
                "kind": shape.kind,
                "layer": shape.name,
                "shape": asdict(shape),
                "counts": layer.counts,
                "multiply_adds": shape.multiply_adds(settings.batch),
                "layout": layout,
                "pass": pass_name,
                "paths": paths[pass_name],
            }
            modules: dict[str, type[nn.Conv2d]] = {"cnnext": KINDS[shape.kind], "pytorch": nn.Conv2d}
            prepare = {
                side: partial(_layer_contender, shape, data, module, layout, pass_name, settings.device)
                for side, module in modules.items()
            }
            with torch.inference_mode() if pass_name == "forward" else contextlib.nullcontext():
                result = measure(case, prepare, data.references[pass_name], settings, clock, budget)
            yield result


# ------------------------------------------------------------------------------------------------------------- networks


def network_call(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str) -> Call:
    """Build a call: one that returns logits, or one that returns the gradients of all parameters.

    A training step is forward, loss and backward. The optimiser is left out: it is the same on both sides.
    """
    network.train(pass_name == "training")
    if pass_name == "inference":
        return partial(network, images)
    parameters = list(network.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(network(images), labels), parameters)


def random_labels(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A class for each image, of as many classes as the network tells apart."""
    with torch.no_grad():
        classes = network.eval()(images[:1]).shape[1]
    return torch.randint(classes, (len(images),), device=images.device)


def _network_contender(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str) -> Contender:
    return Contender(
        checked=network_call(network, images[:_CHECKED_IMAGES], labels[:_CHECKED_IMAGES], pass_name),
        timed=network_call(network, images, labels, pass_name),
    )


def measure_network(
    name: str, settings: Settings, clock: Clock, budget: Budget, announce: Callable[[str], None]
) -> Iterator[Case]:
    """Yield the cases of a network: inference and training step, each in each layout.

    Args:
        name: one of `bench.networks.networks`.
        settings: of the run.
        clock: of the device.
        budget: of the run.
        announce: told the id of a case before it starts.
    """
    torch.manual_seed(settings.seed)
    network = networks.create(name).to(settings.dtype)
    size = input_size(network)
    images = torch.randn(settings.batch, *size).to(settings.dtype)
    labels = random_labels(network, images)
    exact = to_pytorch(copy.deepcopy(network)).double()

    for pass_name in settings.passes:
        layouts = [layout for layout in settings.layouts if settings.wanted in network_case_id(name, layout, pass_name)]
        if not layouts:
            continue
        mode = torch.inference_mode if pass_name == "inference" else contextlib.nullcontext
        announce(f"{name} {pass_name}: reference in float64")
        with mode():
            reference = _network_contender(exact, images.double(), labels, pass_name).checked()
        for layout in layouts:
            case_id = network_case_id(name, layout, pass_name)
            announce(case_id)
            case: Case = {
                "id": case_id,
                "kind": "network",
                "network": name,
                "input_size": size,
                "layout": layout,
                "pass": pass_name,
            }
            memory_format = LAYOUTS[layout]
            ours = _move(copy.deepcopy(network), settings.device, layout)
            theirs = to_pytorch(copy.deepcopy(ours))
            x = images.to(settings.device).contiguous(memory_format=memory_format)
            y = labels.to(settings.device)
            prepare = {
                side: partial(_network_contender, side_network, x, y, pass_name)
                for side, side_network in {"cnnext": ours, "pytorch": theirs}.items()
            }
            with mode():
                result = measure(case, prepare, reference, settings, clock, budget)
            yield result
