"""In-tree build backend: setuptools, compiling against the torch that is already installed.

An isolated build sees none of the environment's packages, so naming torch as a build requirement would download another
torch of several gigabytes. This backend looks for a torch in the environment that the build was started from, and asks
for one only if there is none.
"""

from __future__ import annotations

import importlib.util
import os
import re
import site
import sys
import sysconfig
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  the hooks of PEP 517 and PEP 660 that need no change

MINIMUM_TORCH = (2, 11)


def _site_directories() -> list[Path]:
    """Directories where the environment that started the build keeps its packages, most specific first."""
    directories = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        directories.append(site.getusersitepackages())
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):  # for front ends that build in a virtual environment of their own
        if prefix := os.environ.get(variable):
            directories.append(str(Path(prefix, "lib", version, "site-packages")))
    return [Path(directory) for directory in dict.fromkeys(directories)]


def _find_torch() -> Path | None:
    """The directory that holds a torch new enough, or None."""
    for directory in _site_directories():
        version_file = directory / "torch" / "version.py"
        if not version_file.is_file():
            continue
        match = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)", version_file.read_text())
        if match and (int(match[1]), int(match[2])) >= MINIMUM_TORCH:
            return directory
    return None


def _torch_requirement() -> list[str]:
    if importlib.util.find_spec("torch") or _find_torch():
        return []
    return [f"torch>={MINIMUM_TORCH[0]}.{MINIMUM_TORCH[1]}"]


def _make_torch_importable() -> None:
    if importlib.util.find_spec("torch") is None and (directory := _find_torch()):
        sys.path.append(str(directory))  # last: the build's own requirements come first


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    # NOTE: setuptools' own hook would run setup.py, which imports torch.
    return _torch_requirement()


get_requires_for_build_editable = get_requires_for_build_wheel

# Each hook runs in a process of its own, so once at import serves all of them.
_make_torch_importable()
