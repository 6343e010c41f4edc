"""How often tensors whose ``Sign`` was compiled as ±1 are exactly zero in ONNX Runtime, where ``Sign`` gives 0.

A float convolution or batch-norm of generic values gives 0 by accident: float32 sums of such values hit it with a
probability of some 2^-24 per element. What is zero more often than ``ACCIDENT`` is zero by construction: by a pad, a
mask, a difference of equal numbers, a lattice of integers.

Zeros in the network's input prove nothing: where a tensor is zero because the input is (the input itself, or what a
network without biases makes of it), it is the caller's data. So the input that is zero throughout does not count, nor,
on one of integers or zero in parts, do the elements that are zero on that one, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import ModelProto

from bnn_compiler.verification.reference import Array, Feeds, Reference, expose, pads_of
from bnn_compiler.verification.sample_inputs import Sample

ACCIDENT = 1e-4
"""Share of zeros: a thousand times what generic values give, and less than a row of pixels in any image."""
FEWEST = 2
"""Zeros: in a tensor of some hundred elements a single one exceeds the share, and may be an accident all the same."""


def count_sign_zeros(model: ModelProto, tensors: Iterable[str], samples: Iterable[Sample]) -> dict[str, float]:
    """The largest share of exact zeros in each of ``tensors`` on any of ``samples`` in ONNX Runtime.

    Only shares above an accident's are there. ``samples`` may hold one of zeros alone, which is not counted.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    wanted = list(dict.fromkeys(tensors))
    if not wanted:
        return {}
    looked_at = {name: pads_of(model, wanted).get(name, name) for name in wanted}  # a pad's zeros stay zeros
    reference = Reference(expose(model, looked_at.values()), optimise=False)
    every = list(samples)
    own = next((_zeros(reference, looked_at, sample.feed) for sample in every if sample.kind == "zeros"), {})
    shares = dict.fromkeys(wanted, 0.0)
    for sample in every:
        if sample.kind == "zeros":
            continue
        for name, zeros in _zeros(reference, looked_at, sample.feed).items():
            counted = zeros & ~own[name] if not sample.ordinary and name in own else zeros
            number = int(np.count_nonzero(counted))
            if number >= FEWEST:
                shares[name] = max(shares[name], number / zeros.size)
    return {name: share for name, share in shares.items() if share > ACCIDENT}


class SeesZeros:
    """Whether a run takes the form of the network that keeps ONNX's 0 (``passes/join_exact_form.py``).

    ``tensors`` are those that the artifact looks for zeros in, by their ONNX names.
    """

    def __init__(self, model: ModelProto, tensors: Iterable[str]) -> None:
        wanted = list(dict.fromkeys(tensors))
        pads = pads_of(model, wanted)
        self._tensors = {name: pads.get(name, name) for name in wanted}
        self._reference = Reference(expose(model, self._tensors.values()), optimise=False) if wanted else None

    def __call__(self, feed: Feeds) -> bool:
        """Return whether any of the tensors holds a zero on ``feed``."""
        if self._reference is None:
            return False
        return any(zeros.any() for zeros in _zeros(self._reference, self._tensors, feed).values())


def may_be_common(sample: Sample, values: Iterable[Array]) -> bool:
    """Whether any of a network's ``values`` on ``sample`` has more zeros than an accident: then counting is due."""
    zeros = ((int(value.size - np.count_nonzero(value)), value.size) for value in values)
    return sample.kind != "zeros" and any(number >= max(FEWEST, ACCIDENT * size) for number, size in zeros)


def _zeros(reference: Reference, tensors: Mapping[str, str], feed: Feeds) -> dict[str, Array]:
    """Where each tensor is zero, of either sign; ``tensors`` says what stands for each."""
    values = {**feed, **reference.run(feed)}
    return {name: values[source] == 0 for name, source in tensors.items()}
