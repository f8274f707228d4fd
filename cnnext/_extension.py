"""Loads the shared objects with the kernels and remembers why one could not be loaded."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

from cnnext import inference_ops as _inference_ops  # noqa: F401  the schemas must exist before their kernels
from cnnext import ops as _ops  # noqa: F401

__all__ = ["BUILD_INFO", "Extension", "cpu", "cuda"]


def _find(pattern: str) -> Path | None:
    """A file that the build put beside the package.

    The package may be the one in the source tree, imported because Python was started there, while the build is in the
    installed one.
    """
    directories = [Path(__file__).parent]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        installed = importlib.metadata.distribution("cnnext").locate_file("cnnext")
        directories.append(Path(str(installed)))
    return next((path for directory in directories for path in directory.glob(pattern)), None)


def _read_build_info() -> dict[str, Any]:
    path = _find("build_info.json")
    return {} if path is None else json.loads(path.read_text())


#: What the build wrote down about itself: versions, architectures, and why a part was left out.
BUILD_INFO: dict[str, Any] = _read_build_info()


class Extension:
    """One shared object of kernels, loaded if it is there.

    Attributes:
        name: "cpu" or "cuda".
        path: the file, or None if it was not built.
        reason: why it is not loaded, or None if it is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _find(f"_C_{name}.*so")
        self.reason = self._load()

    @property
    def loaded(self) -> bool:
        """Whether the kernels are registered."""
        return self.reason is None

    def _load(self) -> str | None:
        if self.path is None:
            built = BUILD_INFO.get(self.name, {})
            return f"not built: {built.get('reason', 'run `pip install .` in the source tree')}"
        try:
            torch.ops.load_library(self.path)
        except OSError as error:
            return f"built, but could not be loaded: {error.__cause__ or error}"
        return None

    def library(self) -> ctypes.CDLL:
        """The loaded shared object, for its few plain C functions."""
        return ctypes.CDLL(str(self.path))


cpu = Extension("cpu")
cuda = Extension("cuda")
