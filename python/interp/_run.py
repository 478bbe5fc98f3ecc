"""Running the binary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa

from interp._read import Dataset, Run, load


class InterpError(RuntimeError):
    """What the binary complained of; `code` is its exit code (README: 2 a wrong request, 65 bad data, 66 missing input …)."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


class Listing(list):
    """The rows of a command that lists something and writes no files: a list of dictionaries."""

    @property
    def frame(self) -> pa.Table:
        """The rows as a table."""
        return pa.Table.from_pylist(list(self))


def binary() -> str:
    """The binary: that of INTERP, of this environment, or the first on the path."""
    beside = Path(sys.executable).parent / ("interp.exe" if os.name == "nt" else "interp")
    found = os.environ.get("INTERP") or (str(beside) if beside.is_file() else shutil.which("interp"))
    if found is None:
        raise FileNotFoundError("there is no `interp` on the path: install the wheel or `cargo install --path .`")
    return found


def run(*arguments: str, out: str | Path | None = None) -> Run | Dataset | Listing | dict[str, Any] | str:
    """Runs a command, as on the command line, and loads what it wrote: `run("attention", "--layer", "5", "--prompt", text)`.

    A command that lists something, such as `run("models", "list")`, gives its rows; one that only says something, such as
    `run("doctor")` or what takes `--dry-run`, gives that: a dictionary where it is JSON, or else text.
    Without `out` the results lie in a temporary directory that is left to the system to remove.
    """
    where = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="interp-"))
    before = _written(where)
    place = ("--out", str(where))
    try:
        said = _say(*arguments, *place)
    except InterpError as refused:
        # A command that leaves no files has no use for a directory, and says so before it does anything.
        if out is not None or not str(refused).startswith("--out would do nothing"):
            raise
        place, said = (), ""
    if _written(where) != before:
        return load(where)
    # It wrote nothing, and was quiet: what it has to say is asked for once more.
    if not said.strip():
        said = _say(*arguments, *place, "--format", "json")
    try:
        value = json.loads(said)
    except ValueError:
        return said
    rows = value.get("rows") if isinstance(value, dict) else value
    if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
        return Listing(rows)
    return value


def _say(*arguments: str) -> str:
    command = [binary(), *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode != 0:
        raise InterpError(done.stderr.strip().removeprefix("error: "), done.returncode)
    return done.stdout


def _written(where: Path) -> dict[str, tuple[int, int]]:
    """What says that a run or a dataset is complete, and when it was written."""
    found = {}
    for name in ("run.json", "manifest.json"):
        if (where / name).is_file():
            status = (where / name).stat()
            found[name] = (status.st_mtime_ns, status.st_ino)
    return found
