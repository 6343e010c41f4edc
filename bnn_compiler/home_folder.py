"""A user without a home folder, as in a container that runs under a number that nobody has given a name.

TVM asks for the folder when it is imported, and fails where there is none.
"""

from __future__ import annotations

import os
from pathlib import Path

NOWHERE = Path("/nonexistent")
"""What Debian's base system gives as the home of users without one."""


def name_a_home() -> None:
    """Set ``HOME`` to ``NOWHERE`` where neither it nor the system's list of users says what it is."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(NOWHERE)
