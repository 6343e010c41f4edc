"""Entry point: dispatch, and every error as one line with the right exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePath
from typing import NoReturn

import click

from bnn_compiler.errors import BnncError
from bnn_compiler.interrupts import interrupts_kept
from bnn_compiler.plain_text import plain
from bnn_compiler.regular_file import shown

from .bench_command import bench_command
from .compile_command import compile_command
from .context import Context
from .inspect_command import inspect_command
from .run_command import run_command
from .supervisor import INTERRUPTED, supervise
from .tree_command import tree_command

#: Characters of a line on stderr: lists of what there is are long, names of megabytes are not wanted whole.
_LONGEST_MESSAGE = 1500
_TOOLS = ("apache-tvm", "onnx", "onnxruntime", "numpy")


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        tools = ", ".join(f"{tool} {metadata.version(tool)}" for tool in _TOOLS)
        python = ".".join(str(part) for part in sys.version_info[:3])
        click.echo(f"bnnc {metadata.version('bnn-compiler')} ({tools}, Python {python})")
        ctx.exit()


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print versions."
)
def cli() -> None:
    """Compile binary neural networks from ONNX to native code."""


cli.add_command(compile_command)
cli.add_command(run_command)
cli.add_command(inspect_command)
cli.add_command(bench_command)
cli.add_command(tree_command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line in a supervised child process and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    supervise(lambda: run(words))


def run(words: Sequence[str]) -> int:
    """Run the command line in this process and return its exit status."""
    context = Context(verbose="-v" in words or "--verbose" in words)
    try:
        with interrupts_kept():
            result = cli.main(list(words), "bnnc", standalone_mode=False, obj=context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (BrokenPipeError, SystemExit):
        # The reader of our stdout has seen enough (click makes that an exit): say nothing, as other tools do.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except BaseException as error:  # the last line of defence: nothing but one line reaches the user
        status, message = _describe(error, context.subject)
        if context.verbose:
            traceback.print_exception(error)
        sys.stderr.write(f"bnnc: {plain(' '.join(message.split()), _LONGEST_MESSAGE)}\n")
        return status


def _describe(error: BaseException, subject: str) -> tuple[int, str]:
    """Exit status and text of any exception."""
    prefix = f"{shown(subject)}: " if subject else ""
    match error:
        case KeyboardInterrupt() | click.Abort():
            status, text = INTERRUPTED, f"{prefix}interrupted"
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "bnnc"
            status, text = 2, f"{error.format_message()} See '{command} --help'."
        case click.ClickException():
            status, text = error.exit_code, error.format_message()
        case BnncError():
            status, text = error.exit_status, _with_subject(str(error), subject)
        case MemoryError():
            status, text = 1, f"{prefix}not enough memory; close other programs or take a smaller input shape"
        case OSError():
            where = f"{shown(str(error.filename))}: " if error.filename else ""
            status, text = 1, f"{prefix}{where}{error.strerror or error}"
        case _:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            what = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
            status, text = 1, f"{prefix}internal error, please report it with the output of -v: {what}"
    return status, text


def _with_subject(message: str, subject: str) -> str:
    """The library names a model by its file name, the user's own words for it are better."""
    name = PurePath(subject).name
    if not subject or message.startswith((f"{subject}:", f"{shown(subject)}:")):
        return message
    return f"{shown(subject)}: {message.removeprefix(f'{name}: ')}"
