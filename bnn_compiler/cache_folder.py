"""Where things that can be computed again are kept between runs."""

from __future__ import annotations

import functools
import os
import warnings
from pathlib import Path

import platformdirs

from bnn_compiler.errors import CacheWarning
from bnn_compiler.home_folder import NOWHERE
from bnn_compiler.regular_file import shown


def cache_folder(kind: str) -> Path | None:
    """The folder for things of a kind, in ``$BNNC_CACHE`` or else the user's cache (``~/.cache/bnnc``).

    ``None`` where nothing can be written there, as in a container without a home: then nothing is
    kept. A ``CacheWarning`` says so, once per process.
    """
    named = os.environ.get("BNNC_CACHE")
    folder = Path(named).absolute() if named else Path(platformdirs.user_cache_dir("bnnc", appauthor=False))
    return folder / kind if _is_writable(folder) else None


@functools.cache
def _is_writable(folder: Path) -> bool:
    reason = _why_not(folder)
    if reason:
        warnings.warn(
            f"nothing is kept between runs: {reason}; name a folder that can be written in BNNC_CACHE",
            CacheWarning,
            stacklevel=4,
        )
    return not reason


def _why_not(folder: Path) -> str:
    """Why ``folder`` cannot be made or written to; empty where it can."""
    if folder.is_relative_to(NOWHERE):
        return "this user has no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return f"{shown(folder)} cannot be made ({getattr(error, 'strerror', None) or error})"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{shown(folder)} cannot be written"
