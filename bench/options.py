"""The command lines of ``python -m bench`` and its subcommands."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from bench import networks
from bench.baselines import BASELINES
from bench.cases import KINDS, LAYOUTS
from bench.timer import MIN_ROUNDS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: How the backend of cnnext's side is chosen: as a user gets it, by measurement, or always the same.
BACKENDS = ("auto", "measured", "cuda", "triton", "cpu", "aten")
_QUICK_SECONDS = 15.0


@dataclass(frozen=True)
class Command:
    """A subcommand that measures: what it measures, unless told otherwise."""

    about: str
    #: Passes of networks; none if only layers are measured.
    network_passes: tuple[str, ...]
    #: Whether the distinct layers are measured, and whether they come from the data files.
    layers: bool
    from_files: bool
    networks: tuple[str, ...]
    seconds: float
    forward_only: bool = False
    baselines: tuple[str, ...] = ()


_SHORT = ("mobilenet_v1", "resnet18")
COMMANDS = {
    "": Command(
        "Measures accuracy and throughput of cnnext against PyTorch: networks, and each of their distinct convolution "
        "layers. Prints tables, and writes a JSON file with a CSV table and an HTML report beside it. "
        "Subcommands: ops, models, train, roofline, compare, report; each has a --help.",
        ("inference", "training"),
        layers=True,
        from_files=False,
        networks=_SHORT,
        seconds=150.0,
    ),
    "ops": Command(
        "Measures the convolution layers of networks, each direction apart.",
        (),
        layers=True,
        from_files=True,
        networks=tuple(networks.layer_networks()),
        seconds=900.0,
    ),
    "models": Command(
        "Measures the inference of whole networks, also against torch.compile, ONNX Runtime and OpenVINO.",
        ("inference",),
        layers=False,
        from_files=False,
        networks=_SHORT,
        seconds=60.0,
        baselines=tuple(BASELINES),
    ),
    "train": Command(
        "Measures training steps of whole networks (forward, loss, backward), also against torch.compile.",
        ("training",),
        layers=False,
        from_files=False,
        networks=_SHORT,
        seconds=60.0,
        baselines=("compile",),
    ),
    "roofline": Command(
        "Measures the forward pass of layers and places it under the roofs of the machine: memory and multiply-adds.",
        (),
        layers=True,
        from_files=True,
        networks=("mobilenet_v2", "resnet18"),
        seconds=60.0,
        forward_only=True,
    ),
}


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench: {message}\n")


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return value


def _positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, got {text!r}")
    return value


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no device; expected cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is not supported; expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        if torch.version.cuda is None:
            raise argparse.ArgumentTypeError(f"PyTorch {torch.__version__} was built without CUDA; expected cpu")
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise argparse.ArgumentTypeError(f"{text!r} is not there: {count} CUDA devices are visible")
    return device


def build_parser(name: str) -> Parser:
    """Build the parser of a subcommand of `COMMANDS`; the empty name is the main job."""
    command = COMMANDS[name]
    parser = Parser(prog=f"python -m bench {name}".rstrip(), description=command.about)
    parser.add_argument(
        "--device", type=_device, help="cpu, cuda or cuda:N (default: cuda if cnnext has kernels for it here)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and images (default: float32)")
    parser.add_argument("--layout", choices=[*LAYOUTS, "both"], default="both", help="memory format (default: both)")
    parser.add_argument("--batch", type=_positive_int, help="images a call (default: 8 on a CPU, 128 on CUDA)")
    parser.add_argument(
        "--network",
        action="append",
        choices=networks.layer_networks() if command.from_files else networks.networks(),
        metavar="NAME",
        help=f"may be repeated; a wrong name lists them (default: {', '.join(command.networks)})",
    )
    parser.add_argument("--case", metavar="TEXT", help="only cases in whose id this is found")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        default="auto",
        help="that runs cnnext's side: as a user gets it, measured (cnnext.backends.benchmark), or one by name "
        "(default: auto)",
    )
    if command.layers:
        parser.add_argument("--kind", action="append", choices=KINDS, help="of layer; may be repeated (default: all)")
    if command.layers and not command.forward_only:
        parser.add_argument("--forward-only", action="store_true", help="leave out gradients and training steps")
    if command.network_passes:
        parser.add_argument(
            "--baseline",
            action="append",
            choices=[*BASELINES, "none"],
            help="beside PyTorch's eager mode; may be repeated "
            f"(default: {', '.join(command.baselines) or 'none'}, where installed)",
        )
    parser.add_argument("--threads", type=_positive_int, help="of the CPU (default: PyTorch's)")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="make the C library's heap keep freed memory, so that no call is charged for the page faults of fresh "
        "memory, which come and go with what ran before",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (default: a dated name in bench/results)")
    parser.add_argument(
        "--seconds",
        type=_positive_seconds,
        help=f"to spend, about, baselines apart; cases are sampled {MIN_ROUNDS} times or more in it "
        f"(default: {command.seconds:.0f})",
    )
    if not name:
        parser.add_argument(
            "--quick",
            action="store_true",
            help=f"a first impression: forward only, batch 1, {_QUICK_SECONDS:.0f} s, unless given otherwise",
        )
    parser.add_argument("--dry-run", action="store_true", help="list the cases and stop")
    return parser


def parse(name: str, argv: list[str]) -> tuple[Parser, argparse.Namespace]:
    """Parse the command line of a subcommand, and fill in what it leaves open.

    Returns:
        The parser, for its errors, and the options: those of the command line, all set, and ``passes`` of networks.
    """
    command = COMMANDS[name]
    parser = build_parser(name)
    options = parser.parse_args(argv)
    quick = getattr(options, "quick", False)
    options.forward_only = command.forward_only or quick or getattr(options, "forward_only", False)
    options.seconds = options.seconds or (_QUICK_SECONDS if quick else command.seconds)
    options.networks = list(dict.fromkeys(options.network or command.networks))
    options.kinds = getattr(options, "kind", None) or list(KINDS)
    options.passes = [p for p in command.network_passes if p == "inference" or not options.forward_only]
    wanted = getattr(options, "baseline", None) or command.baselines
    options.baselines = [] if "none" in wanted else list(dict.fromkeys(wanted))
    options.batch_given = options.batch is not None
    if options.batch is None and quick:
        options.batch = 1
    return parser, options
