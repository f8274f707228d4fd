"""Settings of every test: threads, seeds, the reasons for skipping, and a refusal to test nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter, on CPU tensors. cnnext looks at this once, when it is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tests neither read nor write what a user's programs have measured.
os.environ["CNNEXT_CACHE_DIR"] = ""

import cnnext
from cnnext.backends import cost_model


def pytest_sessionstart(session: pytest.Session) -> None:
    """Without the CPU kernels every call would go to aten and every comparison would hold."""
    if "cpu" not in cnnext.backends.available():
        pytest.exit(
            "cnnext's CPU kernels are not loaded, so the tests would only compare PyTorch with itself. "
            f"The package under test is {os.path.dirname(cnnext.__file__)}; `python -m cnnext.info` says what is "
            "missing, `pip install -e .` builds it.",
            returncode=3,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and this machine has none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _kernels_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to PyTorch because it is faster there, for then tests would compare PyTorch with itself."""
    monkeypatch.setattr(cost_model, "RULES", {})


@pytest.fixture(autouse=True)
def _seeded_and_restored() -> Iterator[None]:
    """Each test starts from the same seed, on one thread, and leaves torch's global settings as it found them."""
    torch.manual_seed(20240917)
    torch.set_num_threads(1)
    default_dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default_dtype)
    torch.use_deterministic_algorithms(False)
