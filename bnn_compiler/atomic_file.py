"""Files that appear whole or not at all."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bnn_compiler.errors import ArtifactError
from bnn_compiler.regular_file import shown

_TEMPORARY_SUFFIX = ".bnnc-tmp"


@contextmanager
def atomic_write(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place, synced to disk, when the block ends without an exception.

    On any exception (Ctrl-C included) the file is removed and ``path`` is as before. A process killed outright can
    leave ``.NAME.XXXX.bnnc-tmp`` behind, never a partial ``path``; the next one that writes ``path`` removes it.

    Raises:
        ArtifactError: the directory cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        handle, temporary = _new_temporary(path)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fchmod(stream.fileno(), mode & ~_umask())
            os.fsync(stream.fileno())
            temporary.replace(path)
        temporary = None
        _sync_directory(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Check, before the work is done, that ``path`` could be written afterwards.

    Raises:
        ArtifactError: it is a directory or a device, or its directory is missing or read-only.
    """
    try:
        if path.is_dir():
            raise ArtifactError(f"{shown(path)}: cannot be written: it is a directory")
        if path.exists() and not path.is_file():
            raise ArtifactError(
                f"{shown(path)}: cannot be written: it is no regular file, and would be replaced by one"
            )
        handle, temporary = _new_temporary(path)
        temporary.unlink(missing_ok=True)
        os.close(handle)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError | ValueError) -> ArtifactError:
    return ArtifactError(f"{shown(path)}: cannot be written: {getattr(error, 'strerror', None) or error}")


def _new_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, open and locked; those of dead processes are removed before.

    The lock is the kernel's and goes with the process, however that ends.
    """
    # Part of the name: with all of a long one it would be too long.
    prefix = f".{path.name[:50]}."
    _remove_unowned(path.parent, prefix)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=_TEMPORARY_SUFFIX)
        if _lock(handle, Path(name)) is not False:
            return handle, Path(name)
        os.close(handle)


def _remove_unowned(directory: Path, prefix: str) -> None:
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(_TEMPORARY_SUFFIX):
                with suppress(OSError):
                    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                    try:
                        if _lock(handle, Path(entry.path)):
                            Path(entry.path).unlink()
                    finally:
                        os.close(handle)


def _lock(handle: int, path: Path) -> bool | None:
    """Take the lock of an open file at once.

    False where another has it or ``path`` is that file no longer, None where the file system knows no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:
        return None


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
