"""Executes notebooks in place, one kernel each, and says how long each took; see run.sh."""

import os
import pathlib
import re
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FIGURES = ("image/png", "image/svg+xml", "text/html")


def execute(path):
    book = nbformat.read(path, as_version=4)
    begun = time.perf_counter()
    client = NotebookClient(book, timeout=3600, startup_timeout=600, resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"{path.name}: {error.ename}: {error.evalue}\nin the cell\n{error}")
    seconds = time.perf_counter() - begun
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    errors = [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
    # A cell that ends early by `?` is no error to the kernel: it says so, and goes on.
    errors += [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not errors, f"{path.name}: {errors[0]}"
    shown = [mime for output in outputs for mime in output.get("data", {}) if mime in FIGURES]
    assert shown, f"{path.name} shows no figure"
    return book, seconds, len(shown)


def tidy(book):
    """Drops what differs between two runs of the same notebook."""
    home = re.escape(str(pathlib.Path.home()))
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/svg+xml" in data:
                data.pop("image/png", None)  # the same picture, ten times the size
            if len(data) > 1:
                data.pop("text/plain", None)
            if output.output_type == "stream":
                output.text = re.sub(home, "~", output.text)
    book.metadata.get("language_info", {}).pop("version", None)


for name in sys.argv[1:]:
    path = pathlib.Path(name).resolve()
    book, seconds, figures = execute(path)
    tidy(book)
    text = nbformat.writes(book) + "\n"
    partial = path.with_name("." + path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    print(f"{path.name}: {len(book.cells)} cells, {figures} figures and tables, {seconds:.0f} s, {len(text) / 1e6:.1f} MB", flush=True)
