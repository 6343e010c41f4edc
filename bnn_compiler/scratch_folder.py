"""Temporary folders that outlive nobody: what a killed process leaves behind, the next one removes.

A folder is locked (``flock``) by its owner and by what the owner forks; the kernel lifts the lock when the last of them
is gone, however it went, and in whichever container it was. A folder of ours that nobody locks is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bnn_compiler.errors import ScratchError

_PREFIX = "bnnc-scratch-"
_MARK = ".bnnc-scratch"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in the temporary directory, removed with all that is in it when the block ends.

    Raises:
        ScratchError: it cannot be made.
    """
    _sweep_once()
    folder, lock = make_scratch_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def make_scratch_folder() -> tuple[Path, int]:
    """A new folder, and the descriptor that locks it: whoever calls removes the folder, then closes the descriptor.

    Raises:
        ScratchError: it cannot be made.
    """
    try:
        return _make()
    except OSError as error:
        reason = error.strerror or error
        raise ScratchError(f"no temporary folder can be made: {reason}; name a folder with room in TMPDIR") from error


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _lock(folder, fcntl.LOCK_SH)
        if lock is None:
            continue
        try:
            (folder / _MARK).touch()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
            raise
        return folder, lock


@functools.cache
def _sweep_once() -> None:
    sweep()


def sweep() -> None:
    """Remove the folders of ours that no living process owns from the temporary directory."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        left = [Path(entry.path) for entry in entries if entry.name.startswith(_PREFIX)]
        for folder in left:
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.geteuid():
                    _remove_unowned(folder)


def _remove_unowned(folder: Path) -> None:
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None:
        return
    try:
        # A folder that merely has such a name is somebody else's; an empty one was made, and not yet marked.
        if (folder / _MARK).exists():
            shutil.rmtree(folder, ignore_errors=True)
        else:
            folder.rmdir()
    finally:
        os.close(lock)


def _lock(folder: Path, how: int) -> int | None:
    """The descriptor that holds the lock; ``None`` where it is another's, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how)
        if os.path.samestat(os.fstat(descriptor), folder.lstat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
