"""Directories that the workbench wrote."""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U32": "<u4", "I8": "i1", "U8": "u1", "BOOL": "?"}
# Which commands keep arrays beside their frame, and where.
_ARRAYS = {"probe": "probes.safetensors", "steer": "directions.safetensors"}


def load(path: str | Path) -> Run | Dataset:
    """What a command left in a directory: a :class:`Run`, or the :class:`Dataset` of an export."""
    path = Path(path)
    if (path / "run.json").is_file():
        return Run(path)
    if (path / "manifest.json").is_file():
        return Dataset(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no directory")
    why = "an export that is not sealed yet" if (path / "plan.json").is_file() else "neither a run nor a dataset"
    raise ValueError(f"{path} is {why}: it has no run.json and no manifest.json")


class Run:
    """A run: its frames, its arrays, and how it was made."""

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))

    @property
    def frames(self) -> dict[str, pa.Table]:
        """Every frame of the run by its file's name; `frame` is the main one."""
        return {Path(name).stem: pq.read_table(self.path / name) for name in self.meta.get("frames", ["frame.parquet"])}

    @property
    def frame(self) -> pa.Table:
        """The frame: rows as README's table of commands describes them."""
        return pq.read_table(self.path / "frame.parquet")

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays of a wide capture by site, `[row, d]`; of probes and directions by the names in their file."""
        file = _ARRAYS.get(self.meta["command"])
        if file is not None:
            return read_safetensors(self.path / file)
        return {name: _matrix(column) for name, column in _wide(self.frame)}

    def polars(self):
        """The frame as polars has it."""
        import polars

        return polars.read_parquet(self.path / "frame.parquet")

    def pandas(self):
        """The frame as pandas has it."""
        return self.frame.to_pandas()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """The figure, as a picture that can run nothing."""
        svg = self.path / "figure.svg"
        shown = {"image/svg+xml": svg.read_text(encoding="utf-8")} if svg.is_file() else {}
        return {"text/plain": repr(self), **shown}

    def __repr__(self) -> str:
        model = self.meta.get("model", {}).get("name")
        return f"Run({self.meta.get('command')!r}, model={model!r}, path={str(self.path)!r})"


class Dataset:
    """An activation dataset in Parquet: a row per token, an array column per site."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        self.plan: dict[str, Any] = json.loads((path / "plan.json").read_text(encoding="utf-8"))
        self.parts = [path / part["file"] for part in self.manifest["parts"]]
        if not all(part.suffix == ".parquet" for part in self.parts):
            layout = self.plan["request"]["layout"]
            raise ValueError(f"{path} is laid out as {layout}; this reads parquet: numpy, safetensors or datasets read the others")

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def sites(self) -> list[str]:
        """The sites, in the order of the forward pass."""
        return list(self.plan["request"]["sites"])

    @property
    def frame(self) -> pa.Table:
        """Every column that is no array: prompt, document, pos, token_id, token, labels."""
        names = [field.name for field in pq.read_schema(self.parts[0]) if field.name not in self.sites]
        return pa.concat_tables(pq.read_table(part, columns=names) for part in self.parts)

    @property
    def arrays(self) -> Arrays:
        """A matrix per site, `[row, d]`, read when it is asked for."""
        return Arrays(self)

    def batches(self, site: str, rows: int = 65536) -> Iterator[np.ndarray]:
        """The vectors of a site in their order, `rows` at a time, for datasets that are larger than memory."""
        for part in self.parts:
            for batch in pq.ParquetFile(part).iter_batches(batch_size=rows, columns=[site]):
                yield _matrix(pa.chunked_array([batch.column(0)]))

    def verify(self) -> None:
        """Reads every part and compares its hash with the manifest's."""
        for part, entry in zip(self.parts, self.manifest["parts"]):
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read()).hexdigest()
            if found != entry["sha256"]:
                raise ValueError(f"{part}: sha256 is {found} instead of {entry['sha256']}")

    def __repr__(self) -> str:
        return f"Dataset({len(self)} rows, sites={self.sites}, path={str(self.path)!r})"


class Arrays(Mapping[str, np.ndarray]):
    """The matrices of a dataset by site."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __getitem__(self, site: str) -> np.ndarray:
        if site not in self._dataset.sites:
            raise KeyError(f"{site}; there are {', '.join(self._dataset.sites)}")
        return np.concatenate(list(self._dataset.batches(site)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._dataset.sites)

    def __len__(self) -> int:
        return len(self._dataset.sites)


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name."""
    path = Path(path)
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError(f"{path} is no safetensors file: its header would have {size} bytes")
        header = json.loads(file.read(size))
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES:
            raise ValueError(f"{path}: {name} is {entry['dtype']}, which numpy has no type for")
        begin, end = entry["data_offsets"]
        kind = np.dtype(_TYPES[entry["dtype"]])
        flat = np.frombuffer(data, dtype=kind, count=(end - begin) // kind.itemsize, offset=8 + size + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays


def _wide(table: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    for field in table.schema:
        if pa.types.is_fixed_size_list(field.type):
            yield field.name, table.column(field.name)


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    width = column.type.list_size
    return np.asarray(pc.list_flatten(column)).reshape(-1, width)
