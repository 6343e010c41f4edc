"""Who may write where.

Native libraries print to the process's stdout and stderr as they like. Inside :func:`own_streams` file descriptor 1
leads to stderr and, unless everything is wanted, descriptor 2 leads to a file in memory, while this program's own
output goes to saved copies: stdout carries results only, and an error is one line.

What is written for people may hold foreign text, such as names of tensors. ``Streams.write`` and the rows of ``Table``
let no control characters of it through, and leave out the middle of what is too long (``plain_text``).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import rich.table
from rich.console import Console
from rich.markup import escape

from bnn_compiler.plain_text import plain, plain_lines

from .supervisor import native_output

_PIPED_WIDTH = 200


@dataclass(frozen=True)
class Streams:
    """The user's stdout and stderr; tables and progress go through the consoles, JSON to ``out`` as it is."""

    out: TextIO
    err: TextIO

    def write(self, text: str) -> None:
        """Write lines for people to stdout."""
        self.out.write(plain_lines(text))

    @property
    def console(self) -> Console:
        """A console on stdout; wide enough for whole tables where it is not a terminal."""
        return Console(file=self.out, width=None if self.out.isatty() else _PIPED_WIDTH, highlight=False)

    @property
    def error_console(self) -> Console:
        """A console on stderr, for progress."""
        return Console(file=self.err, highlight=False)


class Table(rich.table.Table):
    """A table whose cells are plain text; nothing in them is rich's markup."""

    def add_row(self, *cells: str) -> None:  # type: ignore[override]
        """Add the cells of a row."""
        super().add_row(*(escape(plain(cell)) for cell in cells))


@contextlib.contextmanager
def own_streams(verbose: bool) -> Iterator[Streams]:
    """Yield the user's streams, with native output kept off them (``verbose``: moved to stderr)."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    out = os.fdopen(saved_out, "w", encoding="utf-8", errors="backslashreplace")
    err = os.fdopen(saved_err, "w", encoding="utf-8", errors="backslashreplace")
    with out, err:
        if not verbose:
            os.dup2(native_output(), 2)
        os.dup2(2, 1)
        try:
            yield Streams(out, err)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # A reader that went away (``bnnc inspect | head``) is no error.
            with contextlib.suppress(BrokenPipeError):
                out.flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
