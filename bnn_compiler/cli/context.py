"""What all commands share: streams, verbosity, the file at hand, progress."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Concatenate, ParamSpec

import click

from .streams import Streams, own_streams

Progress = Callable[[str, float], None]
Parameters = ParamSpec("Parameters")


@dataclass
class Context:
    """State of one invocation; ``subject`` is the file that an error message names.

    ``streams`` is there while a command runs.
    """

    subject: str = ""
    quiet: bool = False
    verbose: bool = False
    _streams: Streams | None = None

    @property
    def streams(self) -> Streams:
        """The user's stdout and stderr."""
        assert self._streams is not None, "only the body of a command writes"
        return self._streams

    def say(self, text: str) -> None:
        """Write a line for people to stdout unless quiet."""
        if not self.quiet:
            self.streams.out.write(text + "\n")

    @contextlib.contextmanager
    def progress(self, title: str, *, live: bool = True) -> Iterator[Progress]:
        """Yield ``report(stage, fraction)``: a bar on a terminal's stderr, nothing elsewhere.

        ``fraction`` is of the whole work, from 0 to 1. ``live=False`` draws only when told something, for measurements
        that a thread of its own would disturb.
        """
        if self.quiet or not self.streams.err.isatty():
            yield lambda stage, fraction: None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.streams.error_console, transient=True, auto_refresh=live) as bar:
            task = bar.add_task(title, total=1.0, stage="")
            yield lambda stage, fraction: bar.update(task, completed=fraction, stage=stage, refresh=not live)


Body = Callable[Concatenate[Context, Parameters], None]


def pass_context(body: Body[Parameters]) -> Callable[Parameters, None]:
    """Make a command of ``body``: it gets the context, and the standard streams to itself."""

    @functools.wraps(body)
    def command(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        context = click.get_current_context().ensure_object(Context)
        try:
            with own_streams(context.verbose) as context._streams:
                body(context, *arguments, **options)
        except KeyboardInterrupt as interrupt:
            # click would print an empty line first.
            raise click.Abort from interrupt

    return command


def quiet_and_verbose(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``-q`` and ``-v``; they set the context and are no parameters of the command."""

    def set_flag(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.obj, str(parameter.name), True)

    for name, text in (
        ("verbose", "Show tracebacks and what native tools print."),
        ("quiet", "Print nothing but errors."),
    ):
        option = click.option(
            f"-{name[0]}", f"--{name}", is_flag=True, expose_value=False, callback=set_flag, is_eager=True, help=text
        )
        command = option(command)
    return command
