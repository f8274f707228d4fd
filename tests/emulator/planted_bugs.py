"""Runs the kernels of planted_bugs.cu, each with and without its bug, and prints what the emulator said, as JSON.

    python -m tests.emulator.planted_bugs BUILD

Each runs in a process of its own, since a sanitizer ends the process it finds something in.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

from tests.emulator import build


def run_apart(module: object, name: str, planted: bool) -> str:
    """What a run says: the error's text, the sanitizer's report, or nothing."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), sys.stderr.fileno())
            try:
                module.run(name, planted)  # type: ignore[attr-defined]
            except RuntimeError as error:
                os.write(sys.stderr.fileno(), f"RuntimeError: {error}".encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if os.WIFSIGNALED(status):
        text += f"killed by signal {os.WTERMSIG(status)}"
    return text


def main() -> None:
    module = build.load(sys.argv[1], "planted_bugs")
    said = {
        name: {str(planted): run_apart(module, name, planted) for planted in (True, False)} for name in module.names()
    }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
