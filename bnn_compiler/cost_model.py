"""What a binary convolution costs by each kernel, in nanoseconds, predicted from its sizes.

Both kernels are sums of terms, each a count of operations that the shape determines times a coefficient:

    popcount     words·pixels·channels · word   +  outputs · output   +  column words · column   +  call
    bit-sliced   planes·blocks · plane  +  plane additions·blocks · add(working set)  +  nodes·blocks · node
                 +  outputs · output   +  call

where a block is one vector of output pixels. ``add`` grows from ``add_l1`` to ``add_l2`` as the planes of a block
outgrow the first-level cache. Packing floats to bits is the same for both and left out.

The coefficients are measured per instruction set by ``benchmarks/calibrate_cost_model.py`` and lie in
``cost_model.json``; for one that was not measured those of the nearest one are taken: only their ratios matter.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa

_COEFFICIENTS = Path(__file__).with_suffix(".json")
#: Which measured instruction set stands in for one that was not.
_NEAREST = {"neon": "avx2_lookup"}
_WORD_BITS = 64


@dataclass(frozen=True)
class PopcountCosts:
    """Nanoseconds; ``word`` per 64-bit word of a pixel and channel."""

    word: float
    output: float
    column: float
    call: float


@dataclass(frozen=True)
class BitslicedCosts:
    """Nanoseconds per vector of pixels (``plane``, ``add_*``, ``node``) or per output."""

    plane: float
    add_l1: float
    add_l2: float
    node: float
    output: float
    call: float


@dataclass(frozen=True)
class CostModel:
    """Coefficients of one instruction set; ``l1_bytes`` of its first-level data cache where they were measured."""

    popcount: PopcountCosts
    bitsliced: BitslicedCosts
    l1_bytes: int

    def popcount_ns(self, geometry: ConvGeometry, words: int) -> float:
        """The popcount kernel; ``words`` 64-bit words per pixel, group and tap."""
        pixels = geometry.batch * geometry.out_height * geometry.out_width
        depth = words * geometry.kernel[0] * geometry.kernel[1]
        costs = self.popcount
        return (
            costs.word * depth * pixels * geometry.out_channels
            + costs.output * pixels * geometry.out_channels
            + costs.column * depth * pixels * geometry.groups
            + costs.call
        )

    def bitsliced_ns(
        self, geometry: ConvGeometry, *, taps: int, blocks: float, lanes: int, additions: float, nodes: float
    ) -> float:
        """The bit-sliced kernels; ``additions`` of planes and ``nodes`` are those of all groups together.

        ``blocks`` counts vectors of ``lanes`` 64-bit words (a narrower one as its fraction), ``taps`` planes a group.
        """
        costs = self.bitsliced
        outputs = geometry.batch * geometry.out_height * geometry.out_width * geometry.out_channels
        return (
            costs.plane * taps * geometry.groups * blocks
            + self.addition_ns(taps, lanes) * additions * blocks
            + costs.node * nodes * blocks
            + costs.output * outputs
            + costs.call
        )

    def addition_ns(self, taps: int, lanes: int) -> float:
        """One plane added for one vector of pixels."""
        working_set = taps * lanes * _WORD_BITS // 8
        outside = max(0.0, 1.0 - self.l1_bytes / working_set) if working_set else 0.0
        return self.bitsliced.add_l1 + (self.bitsliced.add_l2 - self.bitsliced.add_l1) * outside

    def node_overhead(self, taps: int, lanes: int) -> float:
        """What a node of a channel tree costs beside its planes, in plane additions."""
        return self.bitsliced.node / self.addition_ns(taps, lanes)


def load_cost_model(isa: Isa) -> CostModel:
    """The coefficients for ``isa``, or for the nearest measured instruction set."""
    models = _read_models()
    return models.get(isa.popcount) or models[_NEAREST[isa.popcount]]


@functools.cache
def _read_models() -> dict[str, CostModel]:
    entries = json.loads(_COEFFICIENTS.read_text(encoding="utf-8"))["instruction_sets"]
    return {
        name: CostModel(
            PopcountCosts(**entry["popcount"]), BitslicedCosts(**entry["bitsliced"]), int(entry["l1_bytes"])
        )
        for name, entry in entries.items()
    }
