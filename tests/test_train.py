"""examples/train.py: interrupted and resumed runs, several processes, its files, its data, its errors."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import cnnext

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "train.py"
# A few steps of a small network.
QUICK = ["--device", "cpu", "--limit", "128", "--batch-size", "32", "--epochs", "2", "--lr", "0.02"]


@pytest.fixture(scope="module")
def train() -> ModuleType:
    for module in ("matplotlib", "tqdm", "sklearn"):
        pytest.importorskip(module, reason=f"the example needs {module}")
    spec = importlib.util.spec_from_file_location("train_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def _without_time(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


def _interrupt_at(train: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = train.Trainer.train_step

    def train_step(self: Any, *args: Any) -> Any:
        if self.step == step:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(train.Trainer, "train_step", train_step)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within an epoch, after a checkpoint, with dropout, momentum and an average of the weights."""
    options = [*QUICK, "--ema", "0.9", "--save-every", "2", "--set", "width_multiplier=0.25", "--set", "dropout=0.3"]
    straight = train.main([*options, "--out", str(tmp_path / "straight")])
    with monkeypatch.context() as patch:
        _interrupt_at(train, patch, 7)
        with pytest.raises(KeyboardInterrupt):
            train.main([*options, "--out", str(tmp_path / "resumed")])
    assert _load(tmp_path / "resumed" / "checkpoint.pt")["step"] == 6
    torch.manual_seed(1234)  # nothing may depend on the state that the interrupted process had
    resumed = train.main([*options, "--out", str(tmp_path / "resumed"), "--resume"])
    assert _without_time(resumed) == _without_time(straight)
    first, second = (_load(tmp_path / name / "checkpoint.pt") for name in ("straight", "resumed"))
    for part in ("model", "average"):
        assert first[part].keys() == second[part].keys()
        assert all(torch.equal(first[part][name], second[part][name]) for name in first[part])
    momenta = [checkpoint["optimizer"]["state"] for checkpoint in (first, second)]
    assert len(momenta[0]) > 20
    for name, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][name]["momentum_buffer"])
    assert not all(torch.equal(first["model"][name], first["average"][name]) for name in first["model"])


def test_a_failed_write_leaves_the_checkpoint_before_it(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", "lenet", *QUICK, "--out", str(tmp_path)]
    original, writes = torch.save, []

    def save(value: object, path: Path) -> None:
        writes.append(path)
        if len(writes) == 3:  # the checkpoint of the second epoch, after checkpoint and weights of the first
            path.write_bytes(b"half of a checkp")
            raise OSError("disk full")
        original(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(OSError, match="disk full"):
            train.main(options)
    assert _load(tmp_path / "checkpoint.pt")["step"] == 4
    assert len(train.main([*options, "--resume"])) == 2


def test_files_of_a_run(train: ModuleType, tmp_path: Path) -> None:
    """The CSV has the history, the PNG is one, and the weights are those of the network that was tested last."""
    history = train.main(["--model", "lenet", *QUICK, "--out", str(tmp_path)])
    with open(tmp_path / "curves.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == history
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "curves.csv",
        "curves.png",
        "weights.pt",
    ]
    model = cnnext.models.lenet()
    model.load_state_dict(_load(tmp_path / "weights.pt"))
    test = train.load_digits(32, 0).test
    images = torch.stack([test[0, i][0] for i in range(len(test))])
    with torch.inference_mode():
        right = (model.eval()(images).argmax(1) == test.labels).sum().item()
    assert right / len(test) == history[-1]["test_accuracy"]


def test_errors_are_one_line(train: ModuleType, tmp_path: Path) -> None:
    quick = ["--model", "lenet", *QUICK, "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"there is no .*checkpoint.pt to resume"):
        train.main([*quick, "--resume"])
    train.main([*quick, "--epochs", "1"])
    with pytest.raises(SystemExit, match=r"exists: --resume goes on"):
        train.main(quick)
    with pytest.raises(SystemExit, match=r"of a run with lr 0.02, not 0.3"):
        train.main([*quick, "--epochs", "1", "--resume", "--lr", "0.3"])
    with pytest.raises(SystemExit, match=r"128 images do not fill a batch of 500"):
        train.main([*quick, "--batch-size", "500", "--out", str(tmp_path / "other")])
    pytest.importorskip("torchvision")
    with pytest.raises(SystemExit, match=r"should hold train/CLASS"):
        train.main([str(tmp_path / "nothing"), *quick])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores: they shall be there
def test_folders_of_images(train: ModuleType, tmp_path: Path) -> None:
    """Any network on folders of images of any size; processes that load images change nothing."""
    pytest.importorskip("torchvision")
    image_module = pytest.importorskip("PIL.Image")
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("val", 5)):
        for name, shade in (("dark", 40), ("light", 170)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = shade + torch.randint(60, (3, 40 + i, 60 - i), generator=random).permute(1, 2, 0)
                image_module.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{i}.png")
    options = [str(tmp_path / "images"), "--model", "squeezenet1_0", "--size", "40", "--batch-size", "8"]
    options += ["--epochs", "2", "--lr", "0.005", "--device", "cpu", "--warmup-epochs", "0"]
    alone = train.main([*options, "--out", str(tmp_path / "0")])
    helped = train.main([*options, "--out", str(tmp_path / "2"), "--workers", "2"])
    assert _without_time(alone) == _without_time(helped)
    assert alone[0]["step"] == 4
    assert math.isfinite(alone[1]["train_loss"])
    (tmp_path / "images" / "val" / "light").rename(tmp_path / "images" / "val" / "bright")
    with pytest.raises(SystemExit, match="have not the same classes"):
        train.main([*options, "--out", str(tmp_path / "3")])


def test_mixed_precision(train: ModuleType, tmp_path: Path) -> None:
    """Autocast runs the convolutions in bfloat16, the weights stay float32, and the losses are near."""
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, output: seen.add(output.dtype) if isinstance(module, cnnext.PointwiseConv2d) else None
    )
    try:
        mixed = train.main([*QUICK, "--epochs", "1", "--amp", "bfloat16", "--out", str(tmp_path / "mixed")])
    finally:
        handle.remove()
    assert seen == {torch.bfloat16}
    full = train.main([*QUICK, "--epochs", "1", "--out", str(tmp_path / "full")])
    assert mixed[0]["train_loss"] != full[0]["train_loss"]
    assert mixed[0]["train_loss"] == pytest.approx(full[0]["train_loss"], rel=0.05)
    assert all(v.dtype != torch.bfloat16 for v in _load(tmp_path / "mixed" / "weights.pt").values())


TWO_PROCESSES = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import train

def run(self, original=train.Trainer.run):
    history = original(self)
    whole = {name: value.full_tensor() if hasattr(value, "full_tensor") else value
             for name, value in self.model.state_dict().items()}
    shards = sum(hasattr(value, "full_tensor") for value in self.model.state_dict().values())
    torch.save((history, whole, shards), self.args.out.with_name(f"{self.args.out.name}-{self.world.rank}.pt"))
    return history

train.Trainer.run = run
with train.join_world("cpu"):
    for how, model, *options in RUNS:
        train.main(["--parallel", how, "--out", f"{sys.argv[2]}/{model}-{how}", *options])
"""

# Network, options, tolerance. Few and small steps in float64 for the network with batch norms, which multiplies
# rounding errors thirtyfold in each of its first steps, until a ReLU sees another sign. LeNet-5 is smooth.
_SMALL_STEPS = ["--double", "--limit", "64", "--lr", "0.003", "--ema", "0.9", "--epochs", "2", "--device", "cpu"]
MOBILENET = ("mobilenet_v1", _SMALL_STEPS, 1e-6)
LENET = ("lenet", ["--model", "lenet", "--limit", "640", "--lr", "0.1", "--epochs", "2", "--device", "cpu"], 1e-4)


def test_two_processes_train_as_one_with_the_doubled_batch(train: ModuleType, tmp_path: Path) -> None:
    """DDP and FSDP2: same weights on both ranks, same loss curve as one process, same checkpoints."""
    cases = [("ddp", *MOBILENET), ("fsdp", *MOBILENET), ("ddp", *LENET)]
    runs = [(how, model, *options, "--batch-size", "16") for how, model, options, _ in cases]
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.replace("RUNS", repr(runs)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, *launcher, script, SCRIPT.parent, tmp_path],
        env=os.environ | {"PYTHONPATH": str(Path(cnnext.__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    alone = {
        model: train.main([*options, "--batch-size", "32", "--out", str(tmp_path / model)])
        for model, options, _ in (MOBILENET, LENET)
    }
    for how, model, _, tolerance in cases:
        name = f"{model}-{how}"
        (history, first, shards), (_, second, _) = (_load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1))
        network = cnnext.models.create_model(model)
        assert shards == (0 if how == "ddp" else sum(1 for _ in network.parameters()))
        assert first.keys() == second.keys() == network.state_dict().keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert len(history) == len(alone[model]) == 2
        for row, expected in zip(history, alone[model], strict=True):
            assert _without_time([row])[0] == pytest.approx(_without_time([expected])[0], rel=tolerance)
        weights, expected_weights = (_load(tmp_path / run / "weights.pt") for run in (name, model))
        torch.testing.assert_close(weights, expected_weights, rtol=tolerance, atol=tolerance / 10)
    # One process reads what two have left.
    options = [*LENET[1], "--batch-size", "32", "--out", str(tmp_path / "lenet-ddp")]
    assert len(train.main([*options, "--resume"])) == 2


def test_batches_do_not_depend_on_the_number_of_processes(train: ModuleType) -> None:
    device = torch.device("cpu")

    def batches(size: int, rank: int, batch_size: int, start: int = 0, epoch: int = 2) -> list[list[tuple[int, int]]]:
        sampler = train.Batches(103, batch_size, train.World(rank, size, device), seed=5)
        sampler.epoch, sampler.start = epoch, start
        return list(sampler)

    whole = batches(1, 0, 24)
    assert len(whole) == 4
    indices = [index for batch in whole for _, index in batch]
    assert len(set(indices)) == len(indices) == 96
    parts = [batches(3, rank, 8) for rank in range(3)]
    assert [sorted(itertools.chain(*together)) for together in zip(*parts, strict=True)] == [sorted(b) for b in whole]
    assert batches(1, 0, 24, start=3) == whole[3:]
    assert {epoch for batch in whole for epoch, _ in batch} == {2}
    other = batches(1, 0, 24, epoch=3)
    assert [index for batch in other for _, index in batch] != indices


def test_every_test_image_counts_once(train: ModuleType) -> None:
    device = torch.device("cpu")
    for size in (1, 2, 3):
        parts = [train.test_batches(10, 2, train.World(rank, size, device)) for rank in range(size)]
        assert len({tuple(map(len, part)) for part in parts}) == 1
        counted = [index for part in parts for batch in part for epoch, index in batch if epoch == 0]
        assert sorted(counted) == list(range(10))


def test_augmentation_is_a_function_of_image_and_epoch(train: ModuleType) -> None:
    data = train.load_digits(16, seed=3)
    first, label = data.train[0, 7]
    torch.manual_seed(99)
    again, _ = data.train[0, 7]
    assert torch.equal(first, again)
    assert not torch.equal(first, data.train[1, 7][0])
    assert not torch.equal(first, train.load_digits(16, seed=4).train[0, 7][0])
    assert torch.equal(data.test[0, 7][0], data.test[5, 7][0])
    assert first.shape == (1, 16, 16)
    assert label == data.train.labels[7]
    # Turned and moved only a little: nearer to its own digit than to the others.
    plain = train.Digits(data.train.images, data.train.labels, 16, None)
    distances = torch.stack([(first - plain[0, i][0]).square().sum() for i in range(20)])
    assert distances.argmin() == 7


def test_schedule(train: ModuleType) -> None:
    rates = [train.learning_rate(step, 100, 10, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[9] == rates[10] == 0.5
    assert rates[55] == pytest.approx(0.25)
    assert rates[99] == pytest.approx(0.25 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))


def test_average_of_the_weights(train: ModuleType) -> None:
    model = nn.BatchNorm2d(1)
    average = train.Average(model, decay=0.9)
    expected = 1.0
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.fill_(float(step))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert model.weight.item() == 199


def test_auxiliary_classifiers_count(train: ModuleType) -> None:
    logits, labels = torch.randn(3, 4, 5), torch.tensor([0, 4, 2, 2])
    main, *others = (nn.functional.cross_entropy(y, labels) for y in logits)
    outputs = cnnext.models.googlenet.__globals__["GoogLeNetOutput"](*logits)
    torch.testing.assert_close(train.criterion(outputs, labels, 0.0), main + 0.3 * sum(others))
    assert train.main_logits(outputs) is outputs.logits


@pytest.mark.slow  # a minute on two idle cores
def test_mobilenet_v1_learns_the_digits(train: ModuleType, tmp_path: Path) -> None:
    history = train.main(["--device", "cpu", "--out", str(tmp_path)])
    assert history[-1]["test_accuracy"] >= 0.97
