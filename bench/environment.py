"""Where and with what a benchmark ran: the part of a result without which its numbers mean nothing."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import cnnext

_ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the short hash of the checkout, with ``+`` after it if files were changed, or None outside of git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """Return the name of the processor or the card."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next call instead of returning it to the system.

    By default glibc returns large blocks when they are freed, or does not, depending on what was freed before. A call
    that gets its output or scratch from the system then pays for a page fault every 4 KiB, which can be ten times what
    its arithmetic costs, and the next run of the same call may not. Kept memory shows every side at its best.

    Returns:
        Whether that worked; False with another C library.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # as in <malloc.h>
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    never = -1  # read as the largest unsigned number
    return all([mallopt(m_mmap_max, 0), mallopt(m_trim_threshold, never), mallopt(m_arena_max, 1)])


def cpu_mhz() -> float | None:
    """Return the mean clock of the cores just now, or None where it cannot be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return None
    return sum(clocks) / len(clocks) if clocks else None


def graphics_cards() -> str | None:
    """Return the driver, clocks, power limit and temperature of the cards as nvidia-smi says them, or None."""
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", query, "--format=csv"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def busy_share(seconds: float = 0.25) -> float | None:
    """Return the share of the machine's cores that is in use while this process sleeps, or None if it cannot be told.

    Args:
        seconds: how long to look.
    """
    before = _processor_ticks()
    time.sleep(seconds)
    after = _processor_ticks()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return 1 - (after[0] - before[0]) / (after[1] - before[1])


def _processor_ticks() -> tuple[int, int] | None:
    """Return (idle, total) clock ticks of all cores since boot, or None where there is no /proc."""
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    idle = ticks[3] + ticks[4]  # idle and waiting for input or output
    return idle, sum(ticks)


def describe(device: torch.device, keeps_freed_memory: bool) -> dict[str, Any]:
    """Return everything about the machine and the software that may change a result, ready for JSON.

    Args:
        device: that is measured.
        keeps_freed_memory: what `keep_freed_memory` returned, False if it was not called.
    """
    record: dict[str, Any] = {
        "device": str(device),
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_mhz": cpu_mhz(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "busy_elsewhere": busy_share(),
        "keeps_freed_memory": keeps_freed_memory,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cnnext": cnnext.__version__,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "graphics_cards": graphics_cards(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "allow_tf32": torch.backends.cudnn.allow_tf32,
        }
    return record
