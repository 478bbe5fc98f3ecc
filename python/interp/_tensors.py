"""Safetensors as numpy arrays."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np

from interp._files import _HEADER_BYTES, is_count, open_regular, parse_object

_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name."""
    path = Path(path)
    with open_regular(path) as file:
        held = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if held < 8 or size > min(held - 8, _HEADER_BYTES):
            raise ValueError(f"{path} is no safetensors file: its header would have {size} of {held} bytes")
        header = parse_object(file.read(size), path)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header.pop("__metadata__", None)
    return {name: _array(path, name, entry, data, 8 + size) for name, entry in header.items()}


def _array(path: Path, name: str, entry: object, data: mmap.mmap, start: int) -> np.ndarray:
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name} is no tensor")
    kind, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError(f"{path}: {name} is {kind}, which numpy has no type for")
    if not isinstance(shape, list) or len(shape) > 32 or not all(map(is_count, shape)):
        raise ValueError(f"{path}: {name} has the shape {shape}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_count, offsets)):
        raise ValueError(f"{path}: {name} has the offsets {offsets}")
    begin, end = offsets
    dtype, count = np.dtype(_TYPES[kind]), math.prod(shape)
    if end - begin != count * dtype.itemsize or end > len(data) - start:
        raise ValueError(
            f"{path}: {name} of {kind} {shape} has the offsets {begin} and {end}, of {len(data) - start} bytes"
        )
    return np.frombuffer(data, dtype=dtype, count=count, offset=start + begin if count else 0).reshape(shape)
