"""Trains one of cnnext's networks on images.

    python examples/train.py                                  # MobileNet-V1 (0.25) on scikit-learn's digits
    python examples/train.py IMAGES --model resnet18          # folders IMAGES/train/CLASS/* and IMAGES/val/CLASS/*
    python examples/train.py IMAGES --model resnet18 --resume # goes on where it was interrupted
    torchrun --nproc-per-node=8 examples/train.py IMAGES ...  # one process a GPU; --parallel fsdp shards the weights

Into the folder given by --out go checkpoint.pt (all that is needed to go on), weights.pt (a state dict for
`cnnext.models.create_model`), curves.csv and curves.png. Needs pip install ".[examples]".

Whatever is random, be it the order of the images, their augmentation or dropout, is a function of the seed and of the
epoch, the image or the step, and of nothing else. So a run that was interrupted goes on to the same numbers, and
several processes train as one process with the batch of them all does.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import hashlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

import cnnext

try:
    import matplotlib  # noqa: F401
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f'train: {error.name} is missing; install what the examples need: pip install ".[examples]"')

Key = tuple[int, int]  # of an image in training: the epoch, and the image's number
Item = tuple[Tensor, int]  # an image (C, H, W) and its class


def fail(message: str) -> NoReturn:
    """Stop with a message and status 1."""
    sys.exit(f"train: {message}")


def seed_of(*numbers: int) -> int:
    """Make one seed out of several numbers, so that near numbers have seeds far apart."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=7).digest(), "big")


# ----------------------------------------------------------------------------------------------------------------- data


class Data(NamedTuple):
    """Images to train on and to test with."""

    train: Dataset[Item]
    test: Dataset[Item]
    classes: int
    channels: int


class Digits(Dataset[Item]):
    """Handwritten digits, 8x8 pixels, enlarged to ``size``; in training turned, stretched and moved a little."""

    def __init__(self, images: Tensor, labels: Tensor, size: int, seed: int | None) -> None:
        self.images, self.labels, self.size, self.seed = images, labels, size, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        image_from_output = torch.eye(2, 3)
        if self.seed is not None:
            random = torch.Generator().manual_seed(seed_of(self.seed, epoch, index))
            turn, stretch_y, stretch_x, shift_y, shift_x = torch.rand(5, generator=random).mul(2).sub(1).tolist()
            angle = math.radians(12) * turn
            rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            scale = torch.tensor([1 + 0.1 * stretch_x, 1 + 0.1 * stretch_y])
            image_from_output[:, :2] = rotation * scale
            image_from_output[:, 2] = torch.tensor([0.15 * shift_x, 0.15 * shift_y])
        grid = F.affine_grid(image_from_output[None], [1, 1, self.size, self.size], align_corners=False)
        image = F.grid_sample(self.images[index][None], grid, align_corners=False, padding_mode="border")
        return image[0], int(self.labels[index])


def load_digits(size: int, seed: int) -> Data:
    """Load scikit-learn's 1797 digits; a fifth of each class, always the same, is for testing."""
    try:
        from sklearn.datasets import load_digits as sklearn_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        fail('scikit-learn is missing; install what the examples need: pip install ".[examples]"')
    pixels, labels = sklearn_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1  # from 0..16 to -1..1
    parts = train_test_split(images, torch.tensor(labels), test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    train = Digits(train_images, train_labels, size, seed)
    return Data(train, Digits(test_images, test_labels, size, None), classes=10, channels=1)


class Folder(Dataset[Item]):
    """Photographs in a folder for each class; in training cropped and flipped by chance."""

    def __init__(self, root: Path, size: int, seed: int | None) -> None:
        from torchvision import datasets
        from torchvision.transforms import v2

        as_tensor = [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
        if seed is not None:
            geometry = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        else:
            geometry = [v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)]
        self.folder = datasets.ImageFolder(root, transform=v2.Compose([*geometry, *as_tensor]))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        if self.seed is None:
            return self.folder[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch, index))
            return self.folder[index]


def load_folder(root: Path, size: int, seed: int) -> Data:
    """Load root/train and root/val (or root/test), with a folder for each class in both."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        fail("torchvision is missing; it reads folders of images: pip install torchvision")
    train_root = root / "train"
    test_root = next((root / name for name in ("val", "test") if (root / name).is_dir()), root / "val")
    try:
        train, test = Folder(train_root, size, seed), Folder(test_root, size, None)
    except (FileNotFoundError, NotADirectoryError) as error:
        fail(f"{root} should hold train/CLASS/* and val/CLASS/*: {error}")
    if train.folder.classes != test.folder.classes:
        fail(f"{train_root} and {test_root} have not the same classes")
    return Data(train, test, classes=len(train.folder.classes), channels=3)


class Batches(Sampler[list[Key]]):
    """The batches of one process. All processes together take each full batch of ``batch_size * world`` images."""

    def __init__(self, images: int, batch_size: int, world: World, seed: int) -> None:
        self.images, self.batch_size, self.world, self.seed = images, batch_size, world, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return self.images // (self.batch_size * self.world.size)

    def __iter__(self) -> Iterator[list[Key]]:
        random = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.images, generator=random)
        together = self.batch_size * self.world.size
        for batch in range(self.start, len(self)):
            mine = order[batch * together : (batch + 1) * together][self.world.rank :: self.world.size]
            yield [(self.epoch, index) for index in mine.tolist()]


def test_batches(images: int, batch_size: int, world: World) -> list[list[Key]]:
    """Every ``world.size``-th image. All processes have as many; -1 as the epoch marks those that are not to count."""
    padded = math.ceil(images / world.size) * world.size
    keys = [(0, index) if index < images else (-1, 0) for index in range(world.rank, padded, world.size)]
    return [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)]


# ------------------------------------------------------------------------------------------------------------ processes


class World(NamedTuple):
    """The processes that train together, and the device of this one."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextlib.contextmanager
def join_world(device_name: str | None) -> Iterator[World]:
    """Join the other processes, if torchrun started any and nobody did: by NCCL on GPUs, by gloo on CPUs."""
    name = device_name or ("cuda" if torch.cuda.is_available() else "cpu")
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = torch.device(name, int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    joins = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if joins:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank, size, device)
    finally:
        if joins:
            dist.destroy_process_group()


class SumOverProcesses(torch.autograd.Function):
    """The sum over all processes, differentiable: its gradient is the sum of all their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, which are equally large. torch's own runs on GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values, processes = x.to(torch.promote_types(x.dtype, torch.float32)), dist.get_world_size()
        mean = SumOverProcesses.apply(values.mean((0, 2, 3))) / processes
        centred = values - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().mean((0, 2, 3))) / processes
        count = processes * x.numel() // x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum or 0.0)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch norms see the images of all processes; parameters and names stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
    return model


def parallelise(model: nn.Module, world: World, how: str) -> nn.Module:
    """Wrap a network for DDP, or shard it in place for FSDP2, module by module of its trunk."""
    if not dist.is_initialized():
        return model
    if how == "ddp":
        return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)
    mesh = dist.device_mesh.init_device_mesh(world.device.type, (world.size,))
    assert isinstance(model, cnnext.models.Network)
    for name in model.trunk:
        module = model.get_submodule(name)
        if any(True for _ in module.parameters()):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


# ------------------------------------------------------------------------------------------------------------- training


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """Rise linearly to the peak, then fall along half a cosine to zero."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))


def build_optimizer(model: nn.Module, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum; biases and norms do not decay."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=0.0, momentum=momentum, nesterov=momentum > 0)


class Average:
    """An exponential moving average of a network's weights and statistics (EMA)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.capture()

    def capture(self) -> None:
        """Start from what the network is now."""
        self.values = {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the network; faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.model.state_dict().items():
            average = self.values[name]
            if average.is_floating_point():
                average.mul_(decay).add_(value, alpha=1 - decay)
            else:
                average.copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network these values for a while."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.values)
        try:
            yield
        finally:
            self.model.load_state_dict(own)


def criterion(outputs: Tensor | Sequence[Tensor], labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy; auxiliary classifiers, GoogLeNet's, count 0.3 each."""
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, labels, label_smoothing=smoothing)
    main, *auxiliary = (F.cross_entropy(y, labels, label_smoothing=smoothing) for y in outputs)
    return torch.stack([main, *(0.3 * loss for loss in auxiliary)]).sum()


def main_logits(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The classifier's own logits, without auxiliary ones."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` write a file next to ``path``, and put it there when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    write(unfinished)
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_csv(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write one line for each epoch."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)


def draw_curves(path: Path, history: Sequence[Mapping[str, float]], title: str) -> None:
    """Draw losses and accuracies over the epochs."""
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(title)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for column in (name for name in history[0] if name.endswith(quantity)):
            label = column.removesuffix(f"_{quantity}").replace("_", " ")
            axes.plot([row["epoch"] for row in history], [row[column] for row in history], label=label)
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    last = history[-1]["test_accuracy"]
    figure.axes[1].annotate(f"{last:.2%}", (history[-1]["epoch"], last), ha="right", va="top", xytext=(0, -8),
                            textcoords="offset points")  # fmt: skip
    figure.savefig(path, dpi=110)


class Trainer:
    """A training run: the network, the state of the optimiser, the history, and the files of the run."""

    def __init__(self, args: argparse.Namespace, data: Data, world: World) -> None:
        self.args, self.data, self.world = args, data, world
        self.layout = torch.contiguous_format if args.nchw else torch.channels_last
        torch.manual_seed(args.seed)
        kwargs = {"in_channels": data.channels, **args.set}
        model = cnnext.models.create_model(args.model, num_classes=data.classes, **kwargs)
        if world.size > 1 and not args.local_batch_norm:
            model = synchronise_batch_norms(model, world.device)
        self.dtype = torch.float64 if args.double else torch.float32
        self.model = model.to(world.device, self.dtype, memory_format=self.layout)
        self.parallel = parallelise(self.model, world, args.parallel)
        self.optimizer = build_optimizer(self.model, args.momentum, args.weight_decay)
        self.average = Average(self.model, args.ema) if args.ema else None
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=args.amp == torch.float16)

        images = min(len(data.train), args.limit or sys.maxsize)  # type: ignore[arg-type]
        self.batches = Batches(images, args.batch_size, world, args.seed)
        if len(self.batches) == 0:
            fail(f"{images} images do not fill a batch of {args.batch_size * world.size}")
        options: dict[str, Any] = {"num_workers": args.workers, "pin_memory": world.device.type == "cuda"}
        options["persistent_workers"] = args.workers > 0
        self.train_loader = DataLoader(data.train, batch_sampler=self.batches, **options)
        self.test_batches = test_batches(len(data.test), args.batch_size, world)  # type: ignore[arg-type]
        self.test_loader = DataLoader(data.test, batch_sampler=self.test_batches, **options)

        self.step = 0
        # Of the epoch so far, in this process: sums of losses, of correct answers, of images.
        self.sums = torch.zeros(3, dtype=torch.float64, device=world.device)
        self.seconds, self.drawn = 0.0, time.perf_counter()
        self.history: list[dict[str, float]] = []

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self.args.out / "checkpoint.pt"

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of forward passes."""
        return torch.autocast(self.world.device.type, self.args.amp, enabled=self.args.amp is not None)

    def to_device(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Bring a batch to the device, in the layout of the network."""
        images = images.to(self.world.device, self.dtype, memory_format=self.layout, non_blocking=True)
        return images, labels.to(self.world.device, non_blocking=True)

    def run(self) -> list[dict[str, float]]:
        """Train until the last epoch is done; return a row for each."""
        first = self.step // len(self.batches)
        for epoch in range(first, self.args.epochs):
            self.train_epoch(epoch)
            self.finish_epoch(epoch)
        return self.history

    def train_epoch(self, epoch: int) -> None:
        """Train with the images of one epoch that are left."""
        start_time = time.perf_counter()
        self.parallel.train()
        self.batches.epoch, self.batches.start = epoch, self.step - epoch * len(self.batches)
        progress = tqdm(
            self.train_loader,
            desc=f"epoch {epoch + 1}/{self.args.epochs}",
            initial=self.batches.start,
            total=len(self.batches),
            disable=True if self.world.rank else None,  # None: only where there is a terminal
            leave=False,
        )
        for images, labels in progress:
            images, labels = self.to_device(images, labels)
            loss, outputs = self.train_step(images, labels)
            correct = (main_logits(outputs).argmax(1) == labels).sum()
            self.sums += torch.stack([loss * len(labels), correct, torch.full_like(correct, len(labels))])
            if self.step % 20 == 1:  # asking for the loss makes a GPU wait
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if self.args.save_every and self.step % self.args.save_every == 0 and self.step % len(self.batches):
                self.save(self.seconds + time.perf_counter() - start_time)
        self.seconds += time.perf_counter() - start_time

    def train_step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | Sequence[Tensor]]:
        """One step of the optimiser; returns the loss and the outputs of this process."""
        args = self.args
        torch.manual_seed(seed_of(args.seed, self.step, self.world.rank))
        steps = args.epochs * len(self.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, steps, round(args.warmup_epochs * len(self.batches)), args.lr)
        with self.autocast():
            outputs = self.parallel(images)
            loss = criterion(outputs, labels, args.label_smoothing)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return loss.detach(), outputs

    def finish_epoch(self, epoch: int) -> None:
        """Test, and write the files of the run."""
        start_time = time.perf_counter()
        loss, correct, images = self.world.sum(self.sums).tolist()
        row = {
            "epoch": epoch + 1,
            "step": self.step,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / images,
            "train_accuracy": correct / images,
            **self.evaluate("test"),
        }
        if self.average is not None:
            with self.average.applied():
                row |= self.evaluate("ema_test")
        self.seconds += time.perf_counter() - start_time
        row["seconds"] = round(self.seconds, 2)
        self.history.append(row)
        self.sums.zero_()
        self.save(self.seconds)
        if self.world.rank == 0:
            write_atomically(self.args.out / "curves.csv", lambda path: write_csv(path, self.history))
            if time.perf_counter() - self.drawn > 10 or epoch + 1 == self.args.epochs:
                title = f"{self.args.model}, {self.args.data or 'digits'}"
                write_atomically(self.args.out / "curves.png", lambda path: draw_curves(path, self.history, title))
                self.drawn = time.perf_counter()
            shown = ", ".join(
                f"{k.replace('_', ' ')} {v:.4f}" for k, v in row.items() if k.endswith(("loss", "accuracy"))
            )
            print(f"epoch {epoch + 1}: {shown}, {self.seconds:.1f} s", flush=True)

    @torch.no_grad()
    def evaluate(self, name: str) -> dict[str, float]:
        """Loss and accuracy over the test images, of all processes together."""
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64, device=self.world.device)
        for keys, batch in zip(self.test_batches, self.test_loader, strict=True):
            images, labels = self.to_device(*batch)
            with self.autocast():
                logits = self.model(images).double()
            counts = torch.tensor([epoch == 0 for epoch, _ in keys], dtype=torch.float64, device=logits.device)
            losses = F.cross_entropy(logits, labels, reduction="none")
            sums += torch.stack([losses @ counts, (logits.argmax(1) == labels).double() @ counts, counts.sum()])
        loss_sum, correct, count = self.world.sum(sums).tolist()
        return {f"{name}_loss": loss_sum / count, f"{name}_accuracy": correct / count}

    def settings(self) -> dict[str, object]:
        """What must not change between a run and its resumption."""
        free = ("out", "resume", "workers", "parallel", "save_every", "device", "batch_size")
        same = {name: value for name, value in vars(self.args).items() if name not in free}
        return same | {"batch_size of all processes": self.args.batch_size * self.world.size}

    def save(self, seconds: float) -> None:
        """Write the checkpoint and the weights. Every process takes part, the first one writes."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optimizer = get_state_dict(self.model, self.optimizer, options=options)
        average = None
        if self.average is not None:
            with self.average.applied():
                average = get_model_state_dict(self.model, options=options)
                average = {name: value.clone() for name, value in average.items()}
        sums = [torch.empty_like(self.sums) for _ in range(self.world.size)]
        if dist.is_initialized():
            dist.all_gather(sums, self.sums)
        else:
            sums = [self.sums]
        if self.world.rank == 0:
            state = {
                "settings": {name: str(value) for name, value in self.settings().items()},
                "step": self.step,
                "sums": torch.stack(sums).cpu(),
                "seconds": seconds,
                "history": self.history,
                "model": model,
                "optimizer": optimizer,
                "average": average,
                "scaler": self.scaler.state_dict(),
            }
            write_atomically(self.checkpoint, lambda path: torch.save(state, path))
            weights = model if average is None else average
            write_atomically(self.args.out / "weights.pt", lambda path: torch.save(weights, path))
        if dist.is_initialized():
            dist.barrier()

    def resume(self) -> None:
        """Go back to what the checkpoint says. Every process reads it."""
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name, value in self.settings().items():
            if state["settings"].get(name) != str(value):
                fail(f"{self.checkpoint} is of a run with {name} {state['settings'].get(name)}, not {value}")
        options = StateDictOptions(full_state_dict=True)
        if self.average is not None:
            set_model_state_dict(self.model, state["average"], options=options)
            self.average.capture()
        set_state_dict(
            self.model,
            self.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
            options=options,
        )
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        sums = state["sums"]
        if len(sums) != self.world.size:  # the first process takes over what they all had
            sums = torch.cat([sums.sum(0, keepdim=True), torch.zeros(self.world.size - 1, 3, dtype=sums.dtype)])
        self.sums.copy_(sums[self.world.rank])


# --------------------------------------------------------------------------------------------------------- command line

_AMP = {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _model_argument(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(description="Trains one of cnnext's networks on images.")
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="a folder with train/CLASS/* and val/CLASS/* (default: digits)")
    add("--model", choices=cnnext.models.list_models(), default="mobilenet_v1", help="(default: %(default)s)")
    add(
        "--set",
        type=_model_argument,
        action="append",
        metavar="NAME=VALUE",
        help="an argument of the network (default: width_multiplier=0.25 for mobilenet_v1 on digits)",
    )
    add("--out", type=Path, default=Path("run"), help="folder for the files of the run (default: %(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in that folder")
    add("--epochs", type=int, default=30, help="(default: %(default)s)")
    add("--batch-size", type=int, default=64, help="images a process and step (default: %(default)s)")
    add("--limit", type=int, help="train with as many images only, for a quick try")
    add("--size", type=int, help="height and width of the images (default: 224; 32 for digits)")
    add("--lr", type=float, default=0.1, help="highest learning rate (default: %(default)s)")
    add("--warmup-epochs", type=float, default=2.0, help="epochs until it is reached (default: %(default)s)")
    add("--momentum", type=float, default=0.9, help="(default: %(default)s)")
    add("--weight-decay", type=float, default=5e-4, help="(default: %(default)s)")
    add("--label-smoothing", type=float, default=0.0, help="(default: %(default)s)")
    add("--ema", type=float, metavar="DECAY", help="also keep an average of the weights (default: off)")
    add("--amp", choices=["auto", *_AMP], default="auto", help="mixed precision; auto is off on a CPU")
    add("--double", action="store_true", help="float64, to compare runs without their rounding")
    add("--nchw", action="store_true", help="use that layout instead of channels_last")
    add("--device", choices=["cpu", "cuda"], help="(default: cuda if there is one)")
    add("--parallel", choices=["ddp", "fsdp"], default="ddp", help="with torchrun (default: %(default)s)")
    add("--local-batch-norm", action="store_true", help="statistics of each process alone")
    add("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    add("--save-every", type=int, default=0, metavar="STEPS", help="checkpoints within an epoch (default: none)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Run the command; return a row for each epoch."""
    args = build_parser().parse_args(argv)
    if args.set is None and args.model == "mobilenet_v1" and args.data is None:
        args.set = [("width_multiplier", 0.25)]
    args.set = dict(args.set or ())
    args.size = args.size or (32 if args.data is None else 224)
    with join_world(args.device) as world, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        if args.amp == "auto":
            on = world.device.type == "cuda"
            args.amp = "off" if not on else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        args.amp = _AMP[args.amp]
        data = load_digits(args.size, args.seed) if args.data is None else load_folder(args.data, args.size, args.seed)
        trainer = Trainer(args, data, world)
        if args.resume:
            if not trainer.checkpoint.is_file():
                fail(f"there is no {trainer.checkpoint} to resume from")
            trainer.resume()
        elif trainer.checkpoint.exists():
            fail(f"{trainer.checkpoint} exists: --resume goes on from it, another --out starts anew")
        return trainer.run()


if __name__ == "__main__":
    main()
