"""Directories that the workbench wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from interp._files import is_count, name_of, open_regular, parse_object, read_bytes, sha256_of, size_of
from interp._tensors import read_safetensors
from interp._tidy import matrix, tidy, wide

_PARTS = {"parquet": "parquet", "npz": "npz", "safetensors": "safetensors", "saelens": "arrow"}


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
        self.meta: dict[str, Any] = parse_object(read_bytes(path / "run.json"), path / "run.json")

    def _files(self, suffix: str) -> list[str]:
        """The run's files that end so, the main one first: those that run.json lists, or else those in the directory."""
        listed = self.meta.get("files")
        if isinstance(listed, (dict, list)):
            names = [entry.get("name", entry.get("file")) if isinstance(entry, dict) else entry for entry in listed]
            # Files of directories inside the run are not frames of it.
            names = [name_of(name, self.path / "run.json") for name in names if isinstance(name, str) and "/" not in name]
        else:
            names = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        names = [name for name in names if name.endswith(suffix)]
        return sorted(names, key=lambda name: (Path(name).stem != "frame", name))

    def _table(self, name: str) -> pa.Table:
        with open_regular(self.path / name) as file:
            return pq.read_table(file)

    @property
    def frames(self) -> dict[str, pa.Table]:
        """Every frame of the run by its file's name; `frame` is the main one."""
        return {Path(name).stem: self._table(name) for name in self._files(".parquet")}

    @property
    def frame(self) -> pa.Table:
        """The frame: rows as README's table of commands describes them."""
        return self._table("frame.parquet")

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Arrays of probes, directions and subspaces by the names in their file; of a wide capture by site, `[row, d]`; and of
        rows of values by site, with the site's axes: attention as `pattern.3`, `[prompt, head, query, key]`."""
        files = [name for name in self._files(".safetensors") if not name.startswith(("model", "state"))]
        if files:
            return {name: array for file in files for name, array in read_safetensors(self.path / file).items()}
        table = self.frame
        return dict(wide(table)) or dict(tidy(table))

    def polars(self):
        """The frame as polars has it."""
        import polars

        return polars.from_arrow(self.frame)

    def pandas(self):
        """The frame as pandas has it."""
        return self.frame.to_pandas()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        """The figure, as a picture that can run nothing."""
        svg = self.path / "figure.svg"
        shown = {"image/svg+xml": read_bytes(svg).decode("utf-8")} if svg.is_file() else {}
        return {"text/plain": repr(self), **shown}

    def __repr__(self) -> str:
        model = self.meta.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        return f"Run({self.meta.get('command')!r}, model={name!r}, path={str(self.path)!r})"


class Dataset:
    """An activation dataset in Parquet: a row per token, an array column per site."""

    def __init__(self, path: Path):
        self.path = path
        self.manifest: dict[str, Any] = parse_object(read_bytes(path / "manifest.json"), path / "manifest.json")
        plan = read_bytes(path / "plan.json")
        self.plan: dict[str, Any] = parse_object(plan, path / "plan.json")
        if hashlib.sha256(plan).hexdigest() != self.manifest.get("plan"):
            raise ValueError(f"{path}: plan.json and manifest.json do not belong together")
        try:
            request = self.plan["request"]
            layout, sites = request["layout"], request["sites"]
            entries = [(entry["file"], entry["sha256"], entry["bytes"], entry["rows"]) for entry in self.manifest["parts"]]
            planned = [part["rows"] for part in self.plan["parts"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: plan.json or manifest.json has no {error}") from None
        if layout != "parquet":
            raise ValueError(f"{path} is laid out as {layout}; this reads parquet: numpy, safetensors or datasets read the others")
        if not isinstance(sites, list) or not all(isinstance(site, str) for site in sites):
            raise ValueError(f"{path / 'plan.json'} has no list of sites")
        if not entries:
            raise ValueError(f"{path / 'manifest.json'} has no parts")
        for index, (file, sha256, size, rows) in enumerate(entries):
            if name_of(file, path / "manifest.json") != f"part-{index:05}.{_PARTS[layout]}":
                raise ValueError(f"{path / 'manifest.json'} names {file!r} as part {index}")
            if not (isinstance(sha256, str) and is_count(size) and is_count(rows)):
                raise ValueError(f"{path / 'manifest.json'} has no sha256, bytes or rows of {file}")
        rows = [rows for _, _, _, rows in entries]
        if rows != planned or sum(rows) != self.manifest.get("rows"):
            raise ValueError(f"{path}: manifest.json has other parts than plan.json")
        self._entries = entries
        self._whole: set[int] = set()
        self.parts = [path / file for file, _, _, _ in entries]

    def _part(self, index: int) -> Path:
        """A part, after its bytes were found to be those that were sealed."""
        part, (_, sha256, size, rows) = self.parts[index], self._entries[index]
        if index not in self._whole:
            found = size_of(part)
            if found != size:
                raise ValueError(f"{part} has {found} bytes instead of {size}")
            found = sha256_of(part)
            if found != sha256:
                raise ValueError(f"{part}: sha256 is {found} instead of {sha256}")
            found = pq.read_metadata(part).num_rows
            if found != rows:
                raise ValueError(f"{part} has {found} rows instead of {rows}")
            self._whole.add(index)
        return part

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def sites(self) -> list[str]:
        """The sites, in the order of the forward pass."""
        return list(self.plan["request"]["sites"])

    @property
    def frame(self) -> pa.Table:
        """Every column that is no array: prompt, document, pos, token_id, token, labels."""
        names = [field.name for field in pq.read_schema(self._part(0)) if field.name not in self.sites]
        return pa.concat_tables(pq.read_table(self._part(i), columns=names) for i in range(len(self.parts)))

    @property
    def arrays(self) -> Arrays:
        """A matrix per site, `[row, d]`, read when it is asked for."""
        return Arrays(self)

    def batches(self, site: str, rows: int = 65536) -> Iterator[np.ndarray]:
        """The vectors of a site in their order, `rows` at a time, for datasets that are larger than memory."""
        for index in range(len(self.parts)):
            for batch in pq.ParquetFile(self._part(index)).iter_batches(batch_size=rows, columns=[site]):
                yield matrix(pa.chunked_array([batch.column(0)]))

    def verify(self) -> None:
        """Reads every part and compares its size, hash and rows with the manifest's."""
        self._whole.clear()
        for index in range(len(self.parts)):
            self._part(index)

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
