"""Opening files of a directory that somebody else may have made: regular files in that directory, of bounded size."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

_JSON_BYTES = 1 << 30
_HEADER_BYTES = 100_000_000
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def name_of(name: Any, where: Path) -> str:
    """A name that a file gives for another one beside it."""
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise ValueError(f"{where} names {name!r}, which is no file beside it")
    return name


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file that is no link; a pipe does not make it wait."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link; a run or a dataset consists of regular files")
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb")


def size_of(path: Path) -> int:
    """The bytes of a regular file that is no link."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: Path, limit: int = _JSON_BYTES) -> bytes:
    """The content of a file of at most `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} has {size} bytes, and such a file has at most {limit}")
        return file.read(limit)


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    found = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def is_count(value: Any) -> bool:
    """Whether this is a whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
