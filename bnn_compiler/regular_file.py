"""Files that somebody names are read as a whole, so only where that comes to an end: regular files of a stated size.

A named pipe would be waited for, and a device such as ``/dev/zero`` read for ever.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bnn_compiler.plain_text import plain

GIB = 2**30


class UnreadableFileError(Exception):
    """Why the file cannot be read, without its name."""


def open_regular(path: str | os.PathLike[str], largest: int) -> int:
    """A file descriptor for reading, of a regular file of at most ``largest`` bytes.

    Raises:
        UnreadableFileError: there is no such file.
    """
    try:
        # Without O_NONBLOCK opening a named pipe waits for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UnreadableFileError(getattr(error, "strerror", None) or str(error)) from error
    try:
        check_regular(os.fstat(descriptor), largest)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(status: os.stat_result, largest: int) -> None:
    """Check what ``os.stat`` says.

    Raises:
        UnreadableFileError: no regular file, or larger than ``largest`` bytes.
    """
    if stat.S_ISDIR(status.st_mode):
        raise UnreadableFileError("it is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFileError("it is no regular file")
    if status.st_size > largest:
        raise UnreadableFileError(f"it has {status.st_size:,} bytes; at most {largest:,} are read")


def read_regular(path: str | os.PathLike[str], largest: int) -> bytes:
    """The content of a regular file of at most ``largest`` bytes.

    Raises:
        UnreadableFileError: there is no such file, or it cannot be read.
    """
    descriptor = open_regular(path, largest)
    try:
        return read_all(descriptor)
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    """The whole file, without moving the position that other threads' copies of ``descriptor`` share.

    Raises:
        UnreadableFileError: reading fails.
    """
    chunks = []
    offset = 0
    try:
        while chunk := os.pread(descriptor, 1 << 24, offset):
            chunks.append(chunk)
            offset += len(chunk)
    except OSError as error:
        raise UnreadableFileError(error.strerror or str(error)) from error
    return b"".join(chunks)


def shown(path: str | os.PathLike[str] | Path) -> str:
    """A path as messages name it."""
    return plain(os.fspath(path), 300)
