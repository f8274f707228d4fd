"""Files that a reader finds whole at every moment."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON file so that a reader finds the old file or the whole new one, never a part.

    Raises:
        OSError: if the folder cannot be made or written.
        ValueError: if the document has a NaN or an infinity, which JSON cannot hold.
    """
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole: a reader finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide the result from others
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
