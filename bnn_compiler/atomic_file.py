"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bnn_compiler.errors import ArtifactError

_TEMPORARY_SUFFIX = ".bnnc-tmp"


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place, synced to disk, when the block ends without an exception.

    On any exception (Ctrl-C included) the file is removed and ``path`` is as before. A process killed outright can
    leave ``.NAME.XXXX.bnnc-tmp`` behind, never a partial ``path``.

    Raises:
        ArtifactError: the directory cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode & ~_umask())
            os.fsync(stream.fileno())
        temporary.replace(path)
        temporary = None
        _sync_directory(path.parent)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check, before the work is done, that ``path`` could be written afterwards.

    Raises:
        ArtifactError: it is a directory, or its directory is missing or read-only.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: cannot be written: it is a directory")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror or error}") from error
    os.close(handle)
    Path(name).unlink(missing_ok=True)


def _umask() -> int:
    # There is no way to read it without setting it; a library must not disturb it for longer than this.
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
