"""What is made of the benchmark's results: comparisons, tables, pages; and the commands that make and read them."""

from __future__ import annotations

import copy
import csv
import html.parser
import io
import json
import math
import random
import re
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from bench import baselines, gpu_check, markdown, networks, plots, report, timer
from bench import html as page
from bench.__main__ import main
from bench.compare import compare
from bench.peaks import measure_peaks

ROOT = Path(__file__).resolve().parent.parent
RECORDED = sorted((ROOT / "bench/results").glob("*-cpu-*.json"))[0]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    """A result that is in the repository, with what follows from it, and roofs."""
    document = report.load(RECORDED)
    document["peaks"] = {"copy_bytes_per_s": 4e10, "multiply_adds_per_s": 1e11}
    report.complete(document)
    return document


def _measured_again(document: dict[str, Any], seed: int, noise: float, drift: float = 1.0, **factors: float) -> Any:
    """The document as another run might give it: times off by chance, those of the machine or a kind by a factor."""
    chance = random.Random(seed)
    again = copy.deepcopy(document)
    for case in again["cases"]:
        for side in ("cnnext", "pytorch"):
            planted = factors.get(case["kind"], 1.0) if side == "cnnext" else 1.0
            factor = drift * planted * math.exp(chance.gauss(0, noise))
            for key in ("ms", "ms_p20", "ms_p80"):
                case[side][key] *= factor
    return again


def _spread(document: dict[str, Any], spread: float) -> dict[str, Any]:
    """The document with percentiles this far from the medians."""
    wide = copy.deepcopy(document)
    for case in wide["cases"]:
        for side in ("cnnext", "pytorch"):
            case[side]["ms_p20"] = case[side]["ms"] * (1 - spread)
            case[side]["ms_p80"] = case[side]["ms"] * (1 + spread)
    return wide


# ------------------------------------------------------------------------------------------------------------ compare


def test_compare_is_not_alarmed_by_noise(recorded: dict[str, Any]) -> None:
    """With the spread that it says it has, a run that differs from another by chance alone is no loss."""
    before = _spread(recorded, 0.05)
    alarms = 0
    for seed in range(40):
        found = compare(before, _measured_again(before, seed, noise=0.03, drift=1.3))
        alarms += len(found.slower)
        assert found.drift == pytest.approx(1.3, rel=0.03), "the machine's own change is taken out"
        assert 0.02 < found.noise < 0.04
    assert alarms <= 2, "in 40 runs of 184 cases"


@pytest.mark.parametrize("kind", ["depthwise", "pointwise", "dense"])
def test_compare_catches_a_planted_loss_of_ten_percent(recorded: dict[str, Any], kind: str) -> None:
    before = _spread(recorded, 0.05)
    for seed in range(10):
        found = compare(before, _measured_again(before, seed, noise=0.03, **{kind: 1.1}))
        groups = [change for change in found.slower if change.name.startswith(f"all of {kind}")]
        assert groups, f"seed {seed}"
        assert all(1.05 < change.factor < 1.15 for change in groups)
        others = [change.name for change in found.slower if kind not in change.name]
        assert len(others) <= 2


def test_compare_catches_a_single_case(recorded: dict[str, Any]) -> None:
    before = _spread(recorded, 0.02)
    after = copy.deepcopy(before)
    victim, winner = after["cases"][20]["cnnext"], after["cases"][30]["cnnext"]
    for key in ("ms", "ms_p20", "ms_p80"):
        victim[key] *= 1.1
        winner[key] *= 0.8
    found = compare(before, after)
    assert [change.name for change in found.slower] == [before["cases"][20]["id"]]
    assert [change.name for change in found.faster] == [before["cases"][30]["id"]]


def test_compare_as_a_command(recorded: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    report.write_json(before, recorded)
    report.write_json(after, _measured_again(recorded, 0, noise=0.0, depthwise=1.1))
    assert main(["compare", str(before), str(before)]) == 0
    assert main(["compare", str(before), str(after)]) == 1
    assert "1.10x the time" in capsys.readouterr().out
    assert main(["compare", str(before), str(after), "--tolerance", "30"]) == 0
    other = copy.deepcopy(recorded)
    other["settings"]["batch"] = 64
    report.write_json(after, other)
    (tmp_path / "text.json").write_text("{")
    for wrong, words in ((after, "batch is 8"), (tmp_path / "text.json", "not a JSON"), (tmp_path / "none", "No such")):
        with pytest.raises(SystemExit) as exit:
            main(["compare", str(before), str(wrong)])
        assert exit.value.code == 2
        assert words in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- files and pages


def test_rates_follow_from_times(recorded: dict[str, Any]) -> None:
    case = next(c for c in recorded["cases"] if c["id"] == "depthwise 3x3 s1 32->32 112x112/nchw/forward")
    elements = 2 * 8 * 32 * 112 * 112 + 32 * 9
    assert case["bytes"] == 4 * elements
    seconds = case["cnnext"]["ms"] / 1e3
    assert case["cnnext"]["gb_per_s"] == pytest.approx(4 * elements / seconds / 1e9)
    assert case["cnnext"]["gmac_per_s"] == pytest.approx(8 * 32 * 112 * 112 * 9 / seconds / 1e9)
    assert case["cnnext"]["percent_of_roof"] == pytest.approx(100 * 4 * elements / 4e10 / seconds)


def test_table_has_a_line_for_each_case_and_side(recorded: dict[str, Any]) -> None:
    document = copy.deepcopy(recorded)
    document["cases"][0]["baselines"] = {"compile": {**document["cases"][0]["cnnext"], "difference": 1e-6}}
    document["cases"][1]["baselines"] = {"openvino": {"failure": "no"}}
    rows = list(csv.DictReader(io.StringIO(report.to_csv(document))))
    assert len(rows) == 2 * len(document["cases"]) + 1
    assert {row["side"] for row in rows} == {"cnnext", "pytorch", "compile"}
    first = document["cases"][0]
    assert float(rows[0]["ms"]) == pytest.approx(first["cnnext"]["ms"], rel=1e-4)
    assert float(rows[0]["ratio"]) == pytest.approx(first["ratio"], rel=1e-3)


class _Page(html.parser.HTMLParser):
    """Counts rows, and finds tags that are not closed and things that lie elsewhere."""

    VOID = ("meta", "input", "br", "link", "path", "use", "image")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0
        self.scripts = 0
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.rows += tag == "tr"
        self.scripts += tag == "script"
        self.elsewhere += [
            v for k, v in attributes if k in ("src", "href", "xlink:href") and v and not v.startswith("#")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass


def test_page_is_whole_and_stands_alone(recorded: dict[str, Any]) -> None:
    document = copy.deepcopy(recorded)
    document["cases"][3]["failures"] = {"cnnext": "<script>alert(1)</script> & more"}
    document["cases"][3] |= {"cnnext": None, "ratio": None, "accurate": False}
    document["cases"][3]["error"]["cnnext"] = None
    report.complete(document)
    text = page.render(document)
    parser = _Page()
    parser.feed(text)
    assert parser.open == []
    assert parser.elsewhere == []
    assert parser.scripts == 1, "a message is no script"
    assert parser.rows >= len(document["cases"])
    for case in document["cases"]:
        assert (case.get("layer") or case["network"]).replace(">", "&gt;") in text
    assert "<svg" in text, "the roofline"
    assert f">{len(document['summary']['slower'])}</b>slower than PyTorch" in text


def test_page_of_a_run_without_layers_or_networks(recorded: dict[str, Any]) -> None:
    for keep in ("network", "depthwise", "nothing"):
        document = copy.deepcopy(recorded)
        document["cases"] = [case for case in document["cases"] if case["kind"] == keep]
        report.complete(document)
        parser = _Page()
        parser.feed(page.render(document))
        assert parser.open == []


def test_report_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A result of the first format, which had no rates, can still be read."""
    out = tmp_path / "again.json"
    assert main(["report", str(RECORDED), "--out", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"again.json", "again.csv", "again.html", "pictures"}
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert {"speedups.png", "networks.png"} <= pictures
    assert (tmp_path / "pictures" / "speedups.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main(["report", str(RECORDED), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| layers | layout | forward | input gradient | weight gradient |"
    assert any(re.match(r"\| MobileNet-V1 inference \| NCHW \| \d", line) for line in lines)
    columns = {line.count("|") for line in lines if line.startswith("|")}
    assert columns == {6, 7}


def test_roofline_has_a_dot_for_each_forward_case(recorded: dict[str, Any]) -> None:
    figure = plots.roofline(recorded)
    assert figure is not None
    dots = sum(len(collection.get_offsets()) for collection in figure.axes[0].collections)
    assert dots == 2 * sum(case["pass"] == "forward" for case in recorded["cases"])
    assert plots.roofline({**recorded, "peaks": None}) is None


def test_readme_names_networks_as_the_table_does() -> None:
    assert set(markdown._NETWORK_LABEL) <= set(networks.networks())


# ---------------------------------------------------------------------------------------------------------- commands


def _listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_dry_runs_list_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    everything = _listed(capsys)
    assert len(everything) == 184
    assert everything[0] == "mobilenet_v1/nchw/inference"
    ops = _listed(capsys, "ops", "--network", "convnext_tiny", "--network", "mobilenet_v2")
    assert ops[0].startswith("depthwise "), "what this library is for comes first"
    assert any(line.startswith("depthwise 7x7 s1 96->96 56x56 bias/") for line in ops)
    assert _listed(capsys, "ops", "--kind", "depthwise", "--forward-only", "--layout", "nchw") == [
        line for line in _listed(capsys, "ops", "--kind", "depthwise") if line.endswith("/nchw/forward")
    ]
    assert _listed(capsys, "train", "--network", "lenet") == ["lenet/nchw/training", "lenet/channels_last/training"]
    assert all(line.endswith("/forward") for line in _listed(capsys, "roofline"))


@pytest.mark.parametrize("network", ["mobilenet_v1", "resnet18"])
def test_repro_lines_measure_their_case_alone(
    recorded: dict[str, Any], network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [c for c in recorded["cases"] if c.get("network") == network or network in c.get("counts", {})]
    for case in cases[::9]:
        python, dash_m, bench, *arguments = shlex.split(case["repro"])
        assert (python, dash_m, bench) == ("python", "-m", "bench")
        assert _listed(capsys, *arguments) == [case["id"]]


def test_repro_line_of_a_layer_in_no_data_file(recorded: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (case_id,) = [i for i in _listed(capsys, "--network", "lenet") if i.startswith("grouped") and "g6" in i][:1]
    case = {"kind": "grouped", "id": case_id, "counts": {"lenet": 1}}
    line = report._repro(case, recorded["settings"] | {"backend": "cpu"})
    assert _listed(capsys, *shlex.split(line)[3:]) == [case_id]


def test_models_and_train_measure_with_every_backend(tmp_path: Path) -> None:
    for number, (command, backend) in enumerate((("models", "aten"), ("train", "cpu"), ("models", "measured"))):
        out = tmp_path / f"{number}.json"
        arguments = [
            "--network",
            "lenet",
            "--layout",
            "nchw",
            "--batch",
            "2",
            "--seconds",
            "0.2",
            "--baseline",
            "none",
        ]
        assert main([command, *arguments, "--backend", backend, "--out", str(out)]) == 0
        document = json.loads(out.read_text())
        assert [case["pass"] for case in document["cases"]] == ["training" if command == "train" else "inference"]
        assert document["settings"]["backend"] == backend
        assert document["complete"]


def test_a_backend_that_cannot_run_a_case_is_a_failure_of_the_case(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["--network", "mobilenet_v1", "--kind", "dense", "--forward-only", "--layout", "nchw", "--batch", "1"]
    assert main(["ops", *arguments, "--backend", "cuda", "--device", "cpu", "--seconds", "0.2", "--out", str(out)]) == 1
    (case,) = json.loads(out.read_text())["cases"]
    assert "BackendError" in case["failures"]["cnnext"]
    assert case["pytorch"]["ms"] > 0


def test_baselines_answer_for_every_case() -> None:
    settings = {"device": "cpu", "dtype": "float32", "batch": 1, "threads": 1, "seed": 0, "seconds": 0.1}
    cases = [{"id": "x", "network": "no such network", "layout": "nchw", "pass": "inference"}]
    (answer,) = baselines.measure("compile", cases, settings)
    assert answer["id"] == "x"
    assert answer["failure"].startswith("KeyError")
    (answer,) = baselines.measure("no such baseline", [{**cases[0], "network": "lenet"}], settings)
    assert "no such baseline" in answer["failure"]
    assert baselines.why_not("compile", torch.device("cpu"), torch.bfloat16) is None
    assert "float32" in str(baselines.why_not("openvino", torch.device("cpu"), torch.bfloat16))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_other_runtimes_compute_the_same(name: str) -> None:
    if (reason := baselines.why_not(name, torch.device("cpu"), torch.float32)) is not None:
        pytest.skip(reason)
    settings = {"device": "cpu", "dtype": "float32", "batch": 1, "threads": 1, "seed": 0, "seconds": 0.1}
    case = {"layout": "nchw", "pass": "inference"}
    cases = [{**case, "id": network, "network": network} for network in ("squeezenet1_0", "lenet")]
    answer, wrong = baselines.measure(name, cases, settings)
    assert "failure" not in answer
    assert answer["difference"] < 1e-4
    assert answer["ms"] > 0
    # LeNet's pooling sums, with divisor_override: one of them cannot convert that, the other does so wrongly.
    assert re.match(r"ArithmeticError: the result is off by 0\.|OpConversionFailure", wrong["failure"])


def test_peaks_are_not_absurd() -> None:
    peaks = measure_peaks(torch.device("cpu"), torch.float32, timer.CpuClock(), seconds=0.1)
    assert 1e8 < peaks.copy_bytes_per_s < 1e13
    assert 1e8 < peaks.multiply_adds_per_s < 1e15


# ------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("name", networks.SOURCES)
def test_layers_are_those_of_the_source(name: str) -> None:
    package, _ = networks.SOURCES[name]
    if package != "paper":
        pytest.importorskip(package)
    expected = networks.extract_layers(name)
    assert networks.load_layers(name) == expected
    assert (ROOT / f"bench/layers/{name}.json").read_text() == networks.document(name, expected)


#: Multiply-adds and parameters of the convolutions, as the papers count them: of RepLKNet-31B, 15.3 G and 79 M.
PUBLISHED = {"replknet_31b": (15.3e9, 79e6), "resnet18": (1.82e9, 11.2e6), "mobilenet_v1": (568e6, 3.2e6)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_layers_add_up_to_the_published_counts(name: str) -> None:
    layers = networks.load_layers(name)
    multiply_adds, parameters = PUBLISHED[name]
    assert sum(layer.multiply_adds(1) for layer in layers) == pytest.approx(multiply_adds, rel=0.02)
    weights = sum(layer.K * (layer.C // layer.groups) * layer.R * layer.S for layer in layers)
    assert weights == pytest.approx(parameters, rel=0.02)


def test_layers_of_our_networks_are_those_of_the_data_files() -> None:
    import cnnext
    from bench.cases import input_size, shapes_in_order

    for name in ("mobilenet_v1", "resnet18"):
        network = cnnext.models.create_model(name)
        shapes = shapes_in_order(network, input_size(network))  # a shortcut runs before its block or after it
        assert Counter(shapes) == Counter(networks.load_layers(name))


# ---------------------------------------------------------------------------------------------------------- gpu_check


def _program(text: str) -> gpu_check.Command:
    return gpu_check.Command("program", [sys.executable, "-c", text], {"WORD": "hello"})


def test_check_of_a_gpu_keeps_going_and_keeps_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = (
        "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('last words', flush=True); raise SystemExit"
    )
    programs = {
        "build": "import os; print(os.environ['WORD'])",
        "test": "raise ValueError('what is wrong')",
        "ops": hang,
    }
    steps = {
        name: gpu_check.Step(1.0, lambda: None, lambda out, seconds, name=name: [
            gpu_check.Command(name, _program(programs[name]).command, {"WORD": "hello"})
        ])
        for name in programs
    }  # fmt: skip
    steps["models"] = gpu_check.Step(1.0, lambda: "no CUDA device is available", lambda out, seconds: [])
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    assert gpu_check.main(["--out", str(tmp_path), "--minutes", "0.08"]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    outcomes = {step["step"]: (step["status"], step["reason"]) for step in summary["steps"]}
    assert outcomes["build"] == ("passed", "")
    assert outcomes["test"] == ("failed", "ValueError: what is wrong")
    assert outcomes["ops"][0] == "out of time"
    assert outcomes["models"] == ("skipped", "no CUDA device is available")
    assert (tmp_path / "build.log").read_text() == "hello\n"
    assert (tmp_path / "ops.log").read_text() == "last words\n"
    assert summary["environment"]["torch"] == torch.__version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_check_of_a_gpu_says_why_it_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["test", "sanitize", "ops", "models", "--out", str(tmp_path)]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2:4] for line in lines[:4]] == [
        [name, "skipped:"] for name in ("test", "sanitize", "ops", "models")
    ]
    with pytest.raises(SystemExit) as exit:
        gpu_check.main(["tests"])
    assert exit.value.code == 2


def test_every_command_of_the_check_is_one_that_can_be_parsed(tmp_path: Path) -> None:
    """The benchmarks that it runs on a GPU are asked for in words that the command line knows."""
    from bench import options

    for step in ("ops", "models"):
        commands = gpu_check.STEPS[step].commands(tmp_path, 60.0)
        assert len({command.name for command in commands}) == len(commands)
        for command in commands:
            _, dash_m, bench, name, *arguments = command.command
            assert (dash_m, bench) == ("-m", "bench")
            where = arguments.index("--device")
            _, given = options.parse(name, arguments[:where] + arguments[where + 2 :])
            assert given.seconds >= 5
    tools = [command.command[2] for command in gpu_check.STEPS["sanitize"].commands(tmp_path, 60.0)]
    assert tools == ["memcheck", "racecheck", "synccheck", "initcheck"]


# -------------------------------------------------------------------------------------------------- timer on a device


@pytest.mark.gpu
def test_cuda_timer_against_a_known_delay() -> None:
    """`torch.cuda._sleep` spins for a number of clock ticks: twice the ticks are twice the time."""
    clock = timer.CudaClock(torch.device("cuda"))
    ticks = {"once": 2_000_000, "twice": 4_000_000}
    calls = {name: (lambda count=count: torch.cuda._sleep(count)) for name, count in ticks.items()}
    result = timer.compare(calls, clock, seconds=0.5)
    assert result["twice"].median / result["once"].median == pytest.approx(2, rel=0.05)
    rate = torch.cuda.get_device_properties("cuda").clock_rate * 1e3
    assert 0.5 < result["once"].median / (ticks["once"] / rate) < 2


def test_tables_fit_a_terminal(recorded: dict[str, Any]) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    report.print_report(console, recorded)
    text = console.export_text()
    assert "cases are slower than PyTorch" in text
    assert max(len(line) for line in text.splitlines() if line.startswith(" depthwise")) <= 100
