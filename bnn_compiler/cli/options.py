"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from bnn_compiler.limits import DEFAULT_LIMITS

from .arguments import InputShape, LimitsText

Command = Callable[..., Any]


def compile_options(command: Command) -> Command:
    """Add what decides how a model is compiled: target, input shapes, algorithm, the sign of zero."""
    for option in (
        click.option(
            "--limits", type=LimitsText(), default=DEFAULT_LIMITS, show_default="docs/front-end.md",
            help="How large the model may be: nodes=100000,memory=16GiB",
        ),
        click.option(
            "--sign-zero", type=click.Choice(["auto", "plus", "exact"]), default="auto", show_default=True,
            help="What Sign(0) is in front of a binary layer: +1, ONNX's 0, or whichever fits each Sign.",
        ),
        click.option(
            "--max-depth", type=click.IntRange(min=1), default=8, show_default=True,
            help="Most edges between a channel and the root of its channel tree.",
        ),
        click.option(
            "--algorithm", type=click.Choice(["auto", "popcount", "bitsliced", "float"]), default="auto",
            show_default=True, help="How binary layers are computed.",
        ),
        click.option(
            "--input-shape", "input_shapes", type=InputShape(), multiple=True,
            help="Fix the shape of an input; repeat for further inputs.",
        ),
        click.option(
            "--target", default="native", show_default=True, metavar="TARGET",
            help="native, or LLVM's words: llvm -mcpu=cortex-a72 (unquoted or quoted).",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def verify_option(command: Command) -> Command:
    """Add ``--verify/--no-verify``."""
    return click.option(
        "--verify/--no-verify", default=True, show_default=True, help="Compare the result with ONNX Runtime."
    )(command)


def threads_option(command: Command) -> Command:
    """Add ``--threads``."""
    threads = click.IntRange(1, 1024)
    return click.option(
        "--threads", type=threads, default=1, show_default=True, metavar="N", help="Threads to compute with."
    )(command)
