"""What all commands share: streams, verbosity, the file at hand, progress."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import click

from bnn_compiler.errors import CacheWarning
from bnn_compiler.plain_text import plain

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
            self.streams.write(text + "\n")

    @contextlib.contextmanager
    def progress(self, title: str, *, live: bool = True) -> Iterator[Progress]:
        """Yield ``report(stage, fraction)``: a bar on a terminal's stderr, nothing elsewhere.

        ``fraction`` is of the whole work, from 0 to 1. ``live=False`` draws only when told something, for measurements
        that a thread of its own would disturb.
        """
        if self.quiet or not self.streams.err.isatty():
            yield lambda stage, fraction: None
            return
        from rich.markup import escape  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.streams.error_console, transient=True, auto_refresh=live) as bar:
            task = bar.add_task(escape(plain(title)), total=1.0, stage="")
            yield lambda stage, fraction: bar.update(
                task, completed=fraction, stage=escape(plain(stage)), refresh=not live
            )


Body = Callable[Concatenate[Context, Parameters], None]


def pass_context(body: Body[Parameters]) -> Callable[Parameters, None]:
    """Make a command of ``body``: it gets the context, and the standard streams to itself."""

    @functools.wraps(body)
    def command(*arguments: Parameters.args, **options: Parameters.kwargs) -> None:
        context = click.get_current_context().ensure_object(Context)
        try:
            with own_streams(context.verbose) as context._streams, _warnings_shown(context):
                body(context, *arguments, **options)
        except KeyboardInterrupt as interrupt:
            # click would print an empty line first.
            raise click.Abort from interrupt

    return command


@contextlib.contextmanager
def _warnings_shown(context: Context) -> Iterator[None]:
    """One line on stderr for the first warning about the cache: the reason is the same for all."""
    told: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, CacheWarning) and not told and not context.quiet:
            told.append(str(message))
            context.streams.err.write(f"bnnc: note: {plain(told[0])}\n")
            context.streams.err.flush()

    with warnings.catch_warnings():
        warnings.simplefilter("always", CacheWarning)
        warnings.showwarning = show
        yield


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
