"""Name, shape and dtype of a graph input or output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """A dense tensor at the border of a network; ``dtype`` is a NumPy dtype name such as ``float32``.

    ``limit`` is the number of elements among which an integer input chooses, where it is known to be an index.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    limit: int | None = None
