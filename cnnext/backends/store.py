"""Keeps measured times in a file, so that a second start of a program measures nothing.

A file holds the times of one device, by problem. It is replaced as a whole, so a reader finds a whole one; writers take
turns, and each adds to what the others wrote. What cannot be read, or was measured on another device or with other
versions, is ignored and replaced by the next write.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on this system: of two writers at one time, the later wins
    fcntl = None  # type: ignore[assignment]

__all__ = ["Store", "Times", "directory", "path_for", "remove_all"]

_FORMAT = 1
_PREFIX = "times-"

#: Seconds by backend.
Times = dict[str, float]


def directory() -> Path | None:
    """Where the files are: CNNEXT_CACHE_DIR, else "cnnext" in the user's cache directory; None if that is set empty."""
    chosen = os.environ.get("CNNEXT_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    parent = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(parent) if parent else Path.home() / ".cache") / "cnnext"
    except RuntimeError:  # there is no home
        return None


def path_for(device: str) -> Path | None:
    """The file for the device of this name; None if none is kept."""
    parent = directory()
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return None if parent is None else parent / f"{_PREFIX}{name}.json"


def remove_all() -> None:
    """Deletes the files of all devices."""
    parent = directory()
    for path in [] if parent is None else parent.glob(f"{_PREFIX}*.json"):
        with contextlib.suppress(OSError):
            path.unlink()


class Store:
    """The file at `path`, for the device and the versions that `identity` names.

    Args:
        path: the file; None to keep nothing.
        identity: what the times depend on besides the problem. A file with another one is ignored.
    """

    def __init__(self, path: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))

    def read(self) -> dict[str, Times]:
        """The times by problem; empty if there is no file, or none that is whole and of this device."""
        if self.path is None:
            return {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            return {}
        times = document.get("seconds")
        if document.get("identity") != self._identity or not isinstance(times, dict):
            return {}
        return {problem: entry for problem, entry in times.items() if _is_times(entry)}

    def add(self, problem: str, times: Times) -> None:
        """Adds a problem's times to the file, or warns once why that is not possible."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _turn(self.path):
                self._replace({**self.read(), problem: times})
        except OSError as error:
            warnings.warn(
                f"cnnext cannot keep its measured times in {self.path}: {error.strerror or error}. They are measured "
                "again at the next start. CNNEXT_CACHE_DIR names another directory; set empty, it keeps none.",
                stacklevel=2,
            )
            self.path = None

    def _replace(self, times: Mapping[str, Times]) -> None:
        assert self.path is not None
        document = {"format": _FORMAT, "identity": self._identity, "seconds": times}
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=0)
            os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide it from others who share the directory
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


def _is_times(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(seconds, float) and math.isfinite(seconds) and seconds > 0 for seconds in entry.values()
    )


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Waits for other processes that write to `path`. The lock goes when its holder does, however it ends."""
    if fcntl is None:
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        # A file system may have no locks: the worst is then that a time is measured again.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
