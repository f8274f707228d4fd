"""Loads the shared objects with the kernels and remembers why one could not be loaded."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import torch

from cnnext import ops as _ops  # noqa: F401  the schemas must exist before kernels are registered for them

__all__ = ["BUILD_INFO", "Extension", "cpu", "cuda"]

_PACKAGE = Path(__file__).parent


def _read_build_info() -> dict[str, Any]:
    path = _PACKAGE / "build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


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
        self.path = next(_PACKAGE.glob(f"_C_{name}.*so"), None)
        self.reason = self._load()

    @property
    def loaded(self) -> bool:
        """Whether the kernels are registered."""
        return self.reason is None

    def _load(self) -> str | None:
        if self.path is None:
            built = BUILD_INFO.get(self.name, {})
            return f"not built: {built.get('reason', 'no shared object beside the package')}"
        try:
            torch.ops.load_library(self.path)
        except OSError as error:
            return f"built, but could not be loaded: {error}"
        return None

    def library(self) -> ctypes.CDLL:
        """The loaded shared object, for its few plain C functions."""
        return ctypes.CDLL(str(self.path))


cpu = Extension("cpu")
cuda = Extension("cuda")
