"""Arrays out of frames: array columns as matrices, and tidy rows as arrays with the axes of their site."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# The axes of a site, in their order, as columns.
_AXES = ("prompt", "pos", "head", "query", "key", "dim", "neuron", "vocab")
# The column with the value, and the site where no column says it.
_VALUES = (("value", None), ("weight", "pattern"))
# What keys after their query have.
_MASKED = {"pattern": 0.0, "attn_scores": -math.inf}
_MOST = 1 << 31


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """An array column as `[row, d]`."""
    width = column.type.list_size
    return np.asarray(pc.list_flatten(column)).reshape(-1, width)


def wide(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Array columns by name."""
    for field in table.schema:
        if pa.types.is_fixed_size_list(field.type):
            yield field.name, matrix(table.column(field.name))


def tidy(table: pa.Table) -> Iterator[tuple[str, np.ndarray]]:
    """Values of sites that stand in rows, `pattern.3` as `[prompt, head, query, key]`; what has no row is NaN."""
    for column, site in _VALUES:
        if column in table.column_names and "layer" in table.column_names:
            numbers = table.select([name for name in (*_AXES, "layer", column) if name in table.column_names])
            if "site" in table.column_names:
                sites = table.column("site").cast(pa.large_string())
                for name in sites.unique().to_pylist():
                    yield name, _array(numbers.filter(pc.equal(sites, name)), column, name.split(".")[0])
            elif site is not None:
                for layer in numbers.column("layer").unique().to_pylist():
                    own = numbers.filter(pc.equal(numbers.column("layer"), layer))
                    yield f"{site}.{layer}", _array(own, column, site)
            return


def _array(rows: pa.Table, column: str, kind: str) -> np.ndarray:
    axes = [axis for axis in _AXES if axis in rows.column_names and rows.column(axis).null_count < rows.num_rows]
    places = [np.asarray(rows.column(axis)) for axis in axes]
    shape = [int(place.max()) + 1 for place in places]
    if math.prod(shape) > _MOST:
        raise ValueError(f"{kind} would be an array of {shape}; read its rows from frame")
    found = np.full(shape, np.nan, dtype=np.float32)
    if kind in _MASKED and axes[-2:] == ["query", "key"]:
        # A row of a shorter prompt stays NaN.
        later = np.triu(np.ones(shape[-2:], dtype=bool), 1)
        found[..., later] = _MASKED[kind]
        lengths = np.zeros(shape[0], dtype=int)
        np.maximum.at(lengths, places[0], places[-2] + 1)
        for prompt, length in enumerate(lengths):
            found[prompt, ..., length:, :] = np.nan
            found[prompt, ..., :, length:] = np.nan
    found[tuple(places)] = np.asarray(rows.column(column))
    return found
