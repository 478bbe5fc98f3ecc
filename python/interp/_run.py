"""Running the binary."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from interp._read import Dataset, Run, load


class InterpError(RuntimeError):
    """What the binary complained of; `code` is its exit code (README: 2 a wrong request, 65 bad data, 66 missing input …)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def binary() -> str:
    """The binary: that of INTERP, of this environment, or the first on the path."""
    beside = Path(sys.executable).parent / ("interp.exe" if os.name == "nt" else "interp")
    found = os.environ.get("INTERP") or (str(beside) if beside.is_file() else shutil.which("interp"))
    if found is None:
        raise FileNotFoundError("there is no `interp` on the path: install the wheel or `cargo install --path .`")
    return found


def run(*arguments: str, out: str | Path | None = None) -> Run | Dataset:
    """Runs a command, as on the command line, and loads what it wrote: `run("attention", "--layer", "5", "--prompt", text)`.

    Without `out` the results lie in a temporary directory that is left to the system to remove.
    """
    where = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="interp-"))
    command = [binary(), *map(str, arguments), "--out", str(where), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode != 0:
        raise InterpError(done.stderr.strip().removeprefix("error: "), done.returncode)
    return load(where)
