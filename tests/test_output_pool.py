"""The pool of freed CPU outputs: blocks are used again, never shared by two live tensors, and bounded."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import cnnext
from cnnext import functional

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20

pytestmark = pytest.mark.skipif("cpu" not in cnnext.backends.available(), reason="needs the CPU kernels")


@pytest.fixture(autouse=True)
def _empty_pool() -> None:
    gc.collect()
    cnnext.backends.empty_cpu_pool()


def _conv(channels: int = 16, size: int = 128, value: float = 1.0) -> torch.Tensor:
    """An output of channels * size * size * 4 bytes, 1 MiB by default, filled with `value`."""
    x = torch.full((1, channels, size, size), value)
    return functional.depthwise_conv2d(x, torch.ones(channels, 1, 1, 1), backend="cpu")


def _run(program: str, **environment: str) -> str:
    """What a program prints in a process of its own, as the pool's limit is read once."""
    header = "import torch, cnnext\nfrom tests.test_output_pool import _conv\n"
    done = subprocess.run(
        [sys.executable, "-c", header + program],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_freed_block_serves_the_next_output() -> None:
    first = _conv()
    address = first.data_ptr()
    del first
    second = _conv(value=3.0)
    assert second.data_ptr() == address
    assert second.eq(3.0).all()


def test_blocks_begin_in_the_middle_of_a_page() -> None:
    assert _conv().data_ptr() % 4096 == 2048


def test_a_block_is_not_wasted_on_a_much_smaller_output() -> None:
    large = _conv(channels=32)
    address = large.data_ptr()
    del large
    half = _conv(channels=16)
    assert half.data_ptr() != address
    most = _conv(channels=28)
    assert most.data_ptr() == address


def test_the_smallest_block_that_fits_is_taken() -> None:
    tensors = [_conv(channels=channels) for channels in (32, 30, 34)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    tensors.clear()
    assert _conv(channels=29).data_ptr() == addresses[1]


def test_small_outputs_are_left_to_torch() -> None:
    y = _conv(channels=15)
    y.resize_(1, 64, 128, 128)  # storage of torch's own allocator can grow
    del y
    assert cnnext.backends.empty_cpu_pool() == 0


def test_storage_of_the_pool_does_not_grow() -> None:
    with pytest.raises(RuntimeError, match="not resizable"):
        _conv().resize_(1, 64, 128, 128)


def test_empty_cpu_pool_gives_back_what_is_free() -> None:
    kept, freed = _conv(), _conv()
    del freed
    assert cnnext.backends.empty_cpu_pool() == MIB
    assert cnnext.backends.empty_cpu_pool() == 0
    assert kept.eq(1.0).all()


def test_a_view_keeps_the_block() -> None:
    y = _conv(value=2.0)
    view = y[0, 3, 5:7]
    del y
    other = _conv(value=5.0)
    assert view.eq(2.0).all()
    assert other.eq(5.0).all()


def test_a_numpy_array_keeps_the_block() -> None:
    array = _conv(value=2.0).numpy()
    other = _conv(value=5.0)
    assert (array == 2.0).all()
    assert other.eq(5.0).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layouts_and_dtypes(layout: torch.memory_format, dtype: torch.dtype) -> None:
    x = torch.randn(2, 64, 64, 64, dtype=dtype).to(memory_format=layout)
    y = functional.depthwise_conv2d(x, torch.ones(64, 1, 1, 1, dtype=dtype), backend="cpu")
    assert y.is_contiguous(memory_format=layout)
    assert y.dtype == dtype
    assert torch.equal(x, y)


def test_inference_mode() -> None:
    with torch.inference_mode():
        y = _conv()
    assert y.is_inference()
    assert not _conv().is_inference()


def test_autograd_keeps_what_it_saved() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 96, 96, generator=generator, requires_grad=True)
    weights = [torch.randn(32, 1, 3, 3, generator=generator, requires_grad=True) for _ in range(3)]

    def gradients(backend: str) -> tuple[torch.Tensor, ...]:
        y = x
        for weight in weights:
            y = functional.depthwise_conv2d(y, weight, padding=1, backend=backend).relu()
        return torch.autograd.grad(y.square().mean(), (x, *weights))

    for _ in range(2):
        for ours, theirs in zip(gradients("cpu"), gradients("aten"), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_tensors_can_be_copied_pickled_and_shared() -> None:
    y = _conv(value=2.0)
    assert torch.equal(copy.deepcopy(y), y)
    assert torch.equal(pickle.loads(pickle.dumps(y)), y)
    y.share_memory_()
    assert y.is_shared()
    assert y.eq(2.0).all()


def test_threads_never_share_a_block() -> None:
    errors: list[str] = []

    def work(index: int) -> None:
        kept: list[tuple[float, torch.Tensor]] = []
        for step in range(40):
            value = float(index * 1000 + step)
            kept.append((value, _conv(channels=16 + (step + index) % 5, value=value)))
            if len(kept) > 3:
                expected, tensor = kept.pop(step % 3)
                if not tensor.eq(expected).all():
                    errors.append(f"thread {index}, step {step}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_limit() -> None:
    program = "tensors = [_conv() for _ in range(6)]\ndel tensors\nprint(cnnext.backends.empty_cpu_pool())"
    assert _run(program, CNNEXT_CPU_POOL_MIB="4") == str(4 * MIB)
    assert _run(program, CNNEXT_CPU_POOL_MIB="many") == str(6 * MIB), "what is no number counts as not set"


def test_blocks_freed_longest_ago_go_first() -> None:
    program = (
        "a, b, c = _conv(17), _conv(18), _conv(19)\nkept = c.data_ptr()\n"
        "del a\ndel b\ndel c\nprint(cnnext.backends.empty_cpu_pool() >> 10)"
    )
    assert _run(program, CNNEXT_CPU_POOL_MIB="3") == str((18 + 19) * 64)


def test_a_block_beyond_the_limit_is_not_kept() -> None:
    program = "_conv(64)\nprint(cnnext.backends.empty_cpu_pool())"
    assert _run(program, CNNEXT_CPU_POOL_MIB="2") == "0"


def test_zero_switches_it_off() -> None:
    program = "y = _conv()\ny.resize_(1, 64, 128, 128)\ndel y\nprint(cnnext.backends.empty_cpu_pool())"
    assert _run(program, CNNEXT_CPU_POOL_MIB="0") == "0"


def test_tensors_may_outlive_the_interpreter() -> None:
    assert _run("import builtins\nbuiltins.kept = [_conv() for _ in range(3)]\nprint('done')") == "done"


def _child(connection: multiprocessing.connection.Connection) -> None:
    torch.set_num_threads(1)
    tensors = [_conv(value=float(value)) for value in range(4)]
    connection.send(all(tensor.eq(value).all().item() for value, tensor in enumerate(tensors)))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    # In a process without threads of OpenMP, which do not survive a fork; with one of Python that allocates meanwhile.
    program = """
import multiprocessing, threading
from tests.test_output_pool import _child
torch.set_num_threads(1)
mine = _conv(value=7.0)
del mine
mine = _conv(value=8.0)
stop = threading.Event()
def churn():
    while not stop.is_set():
        _conv(17)
thread = threading.Thread(target=churn)
thread.start()
context = multiprocessing.get_context("fork")
for _ in range(5):
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender,))
    process.start()
    assert receiver.poll(60), "the child hangs"
    assert receiver.recv()
    process.join()
    assert process.exitcode == 0
stop.set()
thread.join()
assert mine.eq(8.0).all()
print("done")
"""
    assert _run(program, OMP_NUM_THREADS="1") == "done"
