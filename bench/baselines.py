"""Other ways to run a network, each timed in a process of its own: ``python -m bench.baselines NAME < request``.

A compiler's workers, a second thread pool or another library's memory would disturb what runs beside them. The request
is a JSON document on standard input, see `measure`; the answers are lines of JSON on standard output, one a case, so
that what a process has answered before it fails is kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import cnnext
from bench import networks
from bench.cases import LAYOUTS, input_size, to_pytorch
from bench.runner import as_references, network_call, random_labels, relative_error
from bench.timer import clock_for, compare, timing_json

_ROOT = Path(__file__).resolve().parent.parent
#: Seconds that a process may take beside the time for its samples: compilation, mostly.
_PATIENCE = 600.0

#: By how much a result may differ from PyTorch's, of its largest magnitude; and in a narrow dtype, or of gradients.
_MOST_OFF, _MOST_OFF_ROUNDED = 1e-3, 0.1

Call = Callable[[], Any]
#: Makes the timed call from network, images, labels, pass and threads.
Prepare = Callable[[nn.Module, torch.Tensor, torch.Tensor, str, int], Call]


def _compile(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str, threads: int) -> Call:
    return network_call(torch.compile(network, mode="max-autotune"), images, labels, pass_name)  # type: ignore[arg-type]


def _onnxruntime(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str, threads: int) -> Call:
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "network.onnx"
        torch.onnx.export(network, (images,), path, input_names=["images"], dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str, threads: int) -> Call:
    import openvino

    # Without the hint it computes in bfloat16 where the processor can.
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(openvino.convert_model(network, example_input=images), "CPU", config)
    request = compiled.create_infer_request()
    feed = images.numpy()
    # No copy of images and logits in a call, as on the other sides.
    return lambda: torch.from_numpy(request.infer({0: feed}, share_inputs=True, share_outputs=True)[0])


def _fuse(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, pass_name: str, threads: int) -> Call:
    return partial(cnnext.fuse(cnnext.convert(network)), images)


#: By name. All but "compile" run inference alone; "onnxruntime" and "openvino" take float32 on a CPU, in a layout that
#: they choose. "fuse" is cnnext's own, for the comparison with these: what is next to it is cnnext without fusing.
BASELINES: dict[str, Prepare] = {
    "fuse": _fuse,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}


def why_not(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a baseline cannot run here, or None."""
    if name in ("compile", "fuse"):
        return None
    if device.type != "cpu" or dtype != torch.float32:
        return "is measured for float32 on a CPU only"
    needed = [name, "onnxscript"] if name == "onnxruntime" else [name]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


def takes(name: str, case: dict[str, Any]) -> bool:
    """Whether a baseline is to run a case: a network; where it chooses the layout itself, once."""
    if case["kind"] != "network":
        return False
    if name == "compile":
        return True
    return case["pass"] == "inference" and (name == "fuse" or case["layout"] == "nchw")


def measure(name: str, cases: Sequence[dict[str, Any]], settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Time a baseline in a process of its own.

    Args:
        name: of `BASELINES`.
        cases: ``id``, ``network``, ``layout`` and ``pass`` of each.
        settings: ``device``, ``dtype`` (its name), ``batch``, ``threads``, ``seed``, and ``seconds`` for each case.

    Yields:
        For each case a dictionary with its ``id`` and either a timing or a ``failure`` in words.
    """
    request = json.dumps({"cases": list(cases), "settings": settings})
    patience = _PATIENCE + 2 * settings["seconds"] * len(cases)
    command = [sys.executable, "-m", "bench.baselines", name]
    try:
        ended = subprocess.run(command, cwd=_ROOT, input=request, capture_output=True, text=True, timeout=patience)
        output, failure = ended.stdout, (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
    except subprocess.TimeoutExpired as error:
        partial = error.stdout or ""  # bytes, whatever `text` says, in some versions of Python
        output = partial.decode() if isinstance(partial, bytes) else partial
        failure = f"took longer than {patience:.0f} s"
    answers = {answer["id"]: answer for answer in map(json.loads, output.splitlines())}
    for case in cases:
        yield answers.get(case["id"], {"id": case["id"], "failure": failure})


def _answer(name: str, case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])
    memory_format = LAYOUTS[case["layout"]]
    torch.manual_seed(settings["seed"])
    network = to_pytorch(networks.create(case["network"])).to(device, dtype).to(memory_format=memory_format)
    images = torch.randn(settings["batch"], *input_size(network)).to(device, dtype, memory_format=memory_format)
    labels = random_labels(network, images)
    network.train(case["pass"] == "training")
    mode = torch.no_grad if case["pass"] == "inference" else contextlib.nullcontext
    with mode():
        call = BASELINES[name](network, images, labels, case["pass"], settings["threads"])
        expected = network_call(network, images, labels, case["pass"])()
        error = relative_error(call(), as_references(expected))
        # A converter may leave out what it does not know; a fast wrong result is none.
        if error > (_MOST_OFF if case["pass"] == "inference" and dtype == torch.float32 else _MOST_OFF_ROUNDED):
            raise ArithmeticError(f"the result is off by {error:.2g}")
        timing = compare({name: call}, clock_for(device), settings["seconds"])[name]
    return {"id": case["id"], "difference": error, **timing_json(timing, settings["batch"])}


def main() -> int:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    settings = request["settings"]
    torch.set_num_threads(settings["threads"])
    if torch.device(settings["device"]).type == "cuda":
        torch.backends.cudnn.benchmark = True
    # Libraries print to standard output as they like; the answers have it for themselves.
    answers, sys.stdout = sys.stdout, sys.stderr
    for case in request["cases"]:
        try:
            answer = _answer(sys.argv[1], case, settings)
        except Exception as error:
            message = (str(error).strip().splitlines() or ["no message"])[0]
            answer = {"id": case["id"], "failure": f"{type(error).__name__}: {message}"}
        print(json.dumps(answer), file=answers, flush=True)
        torch._dynamo.reset()
    return 0


if __name__ == "__main__":
    sys.exit(main())
