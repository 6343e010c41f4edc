"""Words of the command line that need more than an option type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bnn_compiler.errors import UsageError
from bnn_compiler.limits import Limits

_TARGET_FLAG_PREFIXES = ("-m", "-num-cores")


def join_target_words(words: Sequence[str]) -> list[str]:
    """Make one word of ``--target`` and the flags that follow it.

    ``--target llvm -mcpu=cortex-a72 -mattr=+neon`` becomes ``--target=llvm -mcpu=cortex-a72 -mattr=+neon``. No option
    of bnnc begins with ``-m``, so nothing else can be meant. Words after ``--`` are left alone.
    """
    joined: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            return [*joined, word, *words[position:]]
        if word == "--target" and position < len(words):
            word = f"--target={words[position]}"
            position += 1
        if word.startswith("--target="):
            while position < len(words) and words[position].startswith(_TARGET_FLAG_PREFIXES):
                word += f" {words[position]}"
                position += 1
        joined.append(word)
    return joined


class TargetCommand(click.Command):
    """A command whose ``--target`` takes LLVM's own spelling, unquoted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the target's words, then parse as usual."""
        return super().parse_args(ctx, join_target_words(args))


class InputShape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """``name=1,3,224,224``; ``name=`` alone is a scalar."""

    name = "NAME=D,D,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Split at the last ``=``: tensor names may hold one."""
        if isinstance(value, tuple):
            return value
        name, equals, sizes = str(value).rpartition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not of the form name=1,3,224,224", param, ctx)
        try:
            shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        except ValueError:
            self.fail(f"{value!r}: {sizes!r} is not a list of whole numbers", param, ctx)
        if any(size < 1 for size in shape):
            self.fail(f"{value!r}: every dimension must be at least 1", param, ctx)
        return name, shape


class LimitsText(click.ParamType[Limits]):
    """``nodes=100000,memory=16GiB``."""

    name = "NAME=N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Limits:
        """Parse the text."""
        if isinstance(value, Limits):
            return value
        try:
            return Limits.parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


def shapes_by_name(pairs: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    """Collect ``--input-shape`` options.

    Raises:
        click.UsageError: two different shapes for one input.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in pairs:
        if shapes.setdefault(name, shape) != shape:
            raise click.UsageError(f"--input-shape gives two shapes for {name!r}")
    return shapes
