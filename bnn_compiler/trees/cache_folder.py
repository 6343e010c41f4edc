"""Where things that can be computed again are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$BNNC_CACHE``, else ``$XDG_CACHE_HOME/bnnc``, else ``~/.cache/bnnc``; it need not exist."""
    named = os.environ.get("BNNC_CACHE")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "bnnc"
