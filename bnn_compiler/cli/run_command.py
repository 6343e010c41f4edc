"""``bnnc run``: a compiled library on arrays from a file."""

from __future__ import annotations

import os
import statistics
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, is_zipfile

import click

from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import FeedError
from bnn_compiler.regular_file import GIB, UnreadableFileError, open_regular, shown

from .context import Context, pass_context, quiet_and_verbose
from .destinations import check_destinations
from .options import threads_option
from .tables import print_outputs
from .verification_sentences import describe_disagreement

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


_LARGEST_INPUT = 64 * GIB


@click.command("run")
@click.argument("library", type=click.Path(path_type=Path))
@click.option(
    "--input", "input_path", type=click.Path(path_type=Path), required=True, help="Arrays by input name (.npz)."
)
@click.option("--output", "output_path", type=click.Path(path_type=Path), help="Write the outputs by name (.npz).")
@click.option("--repeat", type=click.IntRange(1), default=1, metavar="N", help="Run N times and print the latency.")
@threads_option
@quiet_and_verbose
@pass_context
def run_command(
    context: Context, /, library: Path, input_path: Path, output_path: Path | None, repeat: int, threads: int
) -> None:
    """Run LIBRARY, compiled by `bnnc compile`, on the arrays of a .npz file."""
    context.subject = str(library)
    check_destinations({"--output": output_path}, [library, input_path])

    import numpy as np  # noqa: PLC0415

    import bnn_compiler  # noqa: PLC0415

    compiled = bnn_compiler.load(library, threads)
    feeds = _read_feeds(input_path)
    seconds = []
    outputs: dict[str, npt.NDArray[np.generic]] = {}
    for _ in range(repeat):
        start = time.perf_counter()
        outputs = compiled.run(feeds)
        seconds.append(time.perf_counter() - start)
    if output_path is not None:
        with atomic_write(output_path) as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
    if context.quiet:
        return
    print_outputs(context.streams, outputs)
    disagreement = describe_disagreement(compiled.manifest["report"])
    if disagreement is not None:
        context.say(f"note: when it was compiled, the network {disagreement.replace('differs', 'differed', 1)}")
    if repeat > 1:
        low, middle = min(seconds) * 1e6, statistics.median(seconds) * 1e6
        context.say(f"{repeat} runs: minimum {low:,.1f} µs, median {middle:,.1f} µs")


def _read_feeds(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """All arrays of an .npz file, contiguous.

    Raises:
        FeedError: the file is missing, no .npz file, or holds Python objects.
    """
    import numpy as np  # noqa: PLC0415

    way_out = "give an .npz file with an array per input name"
    try:
        with os.fdopen(open_regular(path, _LARGEST_INPUT), "rb") as file:
            if not is_zipfile(file):
                raise FeedError(f"{shown(path)}: it is no .npz file; {way_out}")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return {name: np.ascontiguousarray(archive[name]) for name in archive.files}
    except UnreadableFileError as error:
        raise FeedError(f"{shown(path)}: cannot be read: {error}; {way_out}") from error
    except (OSError, ValueError, BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        # NotImplementedError: a compression that Python's zipfile does not know.
        raise FeedError(f"{shown(path)}: it is damaged or holds more than plain arrays ({error}); {way_out}") from error
