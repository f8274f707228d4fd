"""Times whole networks in inference against PyTorch and other runtimes, each in a process of its own.

    python -m bench.inference [--network mobilenet_v1] [--batch 1 8] [--threads 2] [--contender NAME ...] [--json FILE]

Contenders:
    eager                PyTorch, channels-first
    eager_channels_last  PyTorch, channels_last
    compile              torch.compile, channels_last
    onnxruntime          ONNX Runtime on the exported network
    openvino             OpenVINO on the exported network, its precision hint at float32
    cnnext               cnnext.fuse, on channels-first images

All are float32 on the CPU, with the same weights and images, and each says how far from float64 it is. A contender
whose package is not installed is left out, and that is said. Beside other processes the figures mean little: each of
two threads waits for the other, whichever the system has stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cnnext
from bench.timer import CpuClock

_SECONDS = 3.0
_Call = Callable[[], Any]


def _network(name: str) -> nn.Module:
    """A network in evaluation mode, with batch norms that are not the identity."""
    torch.manual_seed(0)
    model = cnnext.models.create_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def _plain(model: nn.Module) -> nn.Module:
    """The network on PyTorch's own convolutions."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d  # cnnext's differ in their methods alone
    return model


def _eager(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    plain = _plain(model)
    return lambda: plain(x)


def _eager_channels_last(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    plain, turned = _plain(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return lambda: plain(turned)


def _compile(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    plain, turned = _plain(model).to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    compiled = torch.compile(plain)
    return lambda: compiled(turned)


def _export(model: nn.Module, x: torch.Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        torch.onnx.export(_plain(model), (x,), path, dynamo=False)
        return path.read_bytes()


def _onnxruntime(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_export(model, x), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def _openvino(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    import openvino

    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(_export(model, x)), "CPU", settings).create_infer_request()
    feed = [x.numpy()]
    return lambda: request.infer(feed)[0]


def _cnnext(model: nn.Module, x: torch.Tensor, threads: int) -> _Call:
    fused = cnnext.fuse(model)
    return lambda: fused(x)


#: What makes a contender's call, and the packages it needs.
_CONTENDERS: dict[str, tuple[Callable[[nn.Module, torch.Tensor, int], _Call], tuple[str, ...]]] = {
    "eager": (_eager, ()),
    "eager_channels_last": (_eager_channels_last, ()),
    "compile": (_compile, ()),
    "onnxruntime": (_onnxruntime, ("onnx", "onnxruntime")),
    "openvino": (_openvino, ("onnx", "openvino")),
    "cnnext": (_cnnext, ()),
}


def measure(contender: str, network: str, batch: int, threads: int) -> dict[str, Any]:
    """Times one contender in this process.

    Args:
        contender: a key of the table above.
        network: a name of `cnnext.models.list_models()`.
        batch: images of a call.
        threads: threads of a call.

    Returns:
        What was measured, milliseconds of a call (20th percentile, median, 80th percentile, number of samples), and the
        largest error of a logit as a fraction of the largest logit.
    """
    torch.set_num_threads(threads)
    model = _network(network)
    x = torch.randn(batch, *model.input_size, generator=torch.Generator().manual_seed(1))  # type: ignore[misc]
    with torch.inference_mode():
        call = _CONTENDERS[contender][0](model, x, threads)
        reference = copy.deepcopy(_plain(model)).double()(x.double())
        error = (torch.as_tensor(call()).double() - reference).abs().max() / reference.abs().max()
        clock, samples = CpuClock(), []
        start = time.perf_counter()
        call()
        while time.perf_counter() - start < _SECONDS or len(samples) < 10:
            samples += clock.sample(call, 0.0)
    samples.sort()
    low, *_, high = statistics.quantiles(samples, n=5)
    return {
        "contender": contender,
        "network": network,
        "batch": batch,
        "threads": threads,
        "p20_ms": low * 1e3,
        "median_ms": statistics.median(samples) * 1e3,
        "p80_ms": high * 1e3,
        "samples": len(samples),
        "error": float(error),
    }


def _measure_apart(contender: str, network: str, batch: int, threads: int) -> dict[str, Any] | str:
    """`measure` in a process of its own; why not, if it fails."""
    missing = [name for name in _CONTENDERS[contender][1] if importlib.util.find_spec(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    command = [sys.executable, "-m", "bench.inference", "--worker", contender, "--network", network]
    command += ["--batch", str(batch), "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        return (result.stderr.strip() or f"exit status {result.returncode}").splitlines()[-1]
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="mobilenet_v1", choices=cnnext.models.list_models())
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contender", nargs="+", choices=tuple(_CONTENDERS), default=list(_CONTENDERS))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--worker", choices=tuple(_CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker:
        print(json.dumps(measure(options.worker, options.network, options.batch[0], options.threads)))
        return 0
    results = []
    for batch in options.batch:
        print(f"{options.network}, float32, batch {batch}, {options.threads} threads: ms a call, p20 / median / p80")
        own: float | None = None
        # cnnext first, so that each of the others can be set beside it.
        for contender in sorted(options.contender, key=lambda name: name != "cnnext"):
            result = _measure_apart(contender, options.network, batch, options.threads)
            if isinstance(result, str):
                print(f"  {contender:20} {result}", flush=True)
                continue
            results.append(result)
            if contender == "cnnext":
                own = result["median_ms"]
            ratio = "" if own is None else f"  {result['median_ms'] / own:5.2f} times cnnext's"
            times = " / ".join(f"{result[key]:7.2f}" for key in ("p20_ms", "median_ms", "p80_ms"))
            print(f"  {contender:20} {times}  error {result['error']:.0e}{ratio}", flush=True)
    if options.json:
        partial = options.json.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=2) + "\n")
        partial.replace(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
