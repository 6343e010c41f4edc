"""Where a command may write: nowhere that something would be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bnn_compiler.atomic_file import check_writable
from bnn_compiler.errors import UsageError
from bnn_compiler.regular_file import shown


def check_destinations(outputs: Mapping[str, Path | None], inputs: Sequence[Path | None]) -> None:
    """Check all outputs, by the option that names each, before any work is done.

    ``inputs`` are the files that the command reads; the first may be a model with weights in other files, which count.

    Raises:
        UsageError: an output is an input, or another output.
        ArtifactError: it cannot be written.
    """
    wanted = [(option, path) for option, path in outputs.items() if path is not None]
    given = [path for path in inputs if path is not None]
    for index, (option, path) in enumerate(wanted):
        for source in given:
            if _is_same(path, source):
                raise UsageError(f"{option} {shown(path)}: this is the input, which would be lost; name another file")
        for other, earlier in wanted[:index]:
            if _is_same(path, earlier):
                raise UsageError(f"{option} {shown(path)}: {other} names the same file; name two")
        check_writable(path)
    # A model is parsed twice only where something might be lost: an output that exists, in the model's own folder.
    near = [(option, path) for option, path in wanted if path.is_file() and given and _is_below(path, given[0].parent)]
    if near:
        from bnn_compiler.frontend.model_file import external_files  # noqa: PLC0415

        held = external_files(given[0])
        for option, path in near:
            if any(_is_same(path, file) for file in held):
                raise UsageError(
                    f"{option} {shown(path)}: the model's weights are in this file, which would be lost; name another"
                )


def _is_same(one: Path, other: Path) -> bool:
    """Whether writing ``one`` would take the place of ``other``, or of what that is a link to."""
    try:
        if one.exists() and other.exists() and one.samefile(other):
            return True
        return _place(one) in (_place(other), other.resolve())
    except (OSError, RuntimeError, ValueError):  # what cannot be looked at is refused when it is read or written
        return False


def _place(path: Path) -> Path:
    """The folder's own name, and the entry in it, which may be a link: writing replaces the link."""
    return path.parent.resolve() / path.name


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        return False
