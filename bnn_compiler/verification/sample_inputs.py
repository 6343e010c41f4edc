"""The inputs on which a compiled network is compared with ONNX Runtime.

Ordinary inputs (:func:`~.reference.sample_feeds`) almost never hold an exact zero or two equal values. Images, masks
and padded sequences do. So float inputs also get

- *integers* from 1 to 255, as images that nobody has normalised;
- *half zeros*: zeros in the second half of the last axis but one (rows of an image, tokens of a sequence; features
  where there is no such axis), and ordinary values before;
- *zeros* alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.reference import Array, Feeds, sample_feeds

Kind = Literal["ordinary", "integers", "half zeros", "zeros"]

ORDINARY = 4
UNUSUAL: tuple[Kind, ...] = ("integers", "half zeros", "zeros")


@dataclass(frozen=True)
class Sample:
    """One input of a network."""

    kind: Kind
    feed: Feeds

    @property
    def ordinary(self) -> bool:
        """Whether it is of the kind that networks are trained on."""
        return self.kind == "ordinary"


def sample_inputs(inputs: Sequence[TensorSpec], seed: int, without: Collection[Kind] = ()) -> Iterator[Sample]:
    """Ordinary inputs, then unusual ones if there are float inputs; one at a time, as they can be large."""
    for index in range(ORDINARY):
        yield Sample("ordinary", sample_feeds(inputs, seed, index))
    for kind in _unusual_kinds(inputs, without):
        index = ORDINARY + UNUSUAL.index(kind)
        feed = sample_feeds(inputs, seed, index)
        yield Sample(kind, {name: _unusual(value, kind, (seed, index)) for name, value in feed.items()})


def number_of_inputs(inputs: Sequence[TensorSpec], without: Collection[Kind] = ()) -> int:
    """How many :func:`sample_inputs` gives."""
    return ORDINARY + len(_unusual_kinds(inputs, without))


def _unusual_kinds(inputs: Sequence[TensorSpec], without: Collection[Kind]) -> list[Kind]:
    floats = any(np.dtype(spec.dtype).kind == "f" for spec in inputs)
    return [kind for kind in UNUSUAL if kind not in without] if floats else []


def _unusual(value: Array, kind: Kind, seed: tuple[int, int]) -> Array:
    if value.dtype.kind != "f":
        return value  # integers hold zeros as it is
    if kind == "zeros":
        return np.zeros_like(value)
    if kind == "integers":
        return np.random.default_rng(seed).integers(1, 256, value.shape).astype(value.dtype)
    halved = value.copy()
    axis = 0 if value.ndim == 1 else value.ndim - 2 if value.ndim > 2 else 1
    if value.ndim:
        np.moveaxis(halved, axis, 0)[(value.shape[axis] + 1) // 2 :] = 0
    return halved
