"""What a binary convolution costs by each kernel, in nanoseconds, predicted from its sizes.

A kernel's time is a sum over its operations of how often it does them (``kernel_work.py``) times what one takes. The
times are measured per instruction set by ``benchmarks/calibrate_cost_model.py`` and lie in ``cost_model.json``, apart
for the cores of one vendor where they were measured there. For an instruction set that was not measured those of the
nearest one are taken: only their ratios matter. Packing floats to bits is part of every prediction.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bnn_compiler.kernels.kernel_work import ListWork, Work, counting_work, pack_work, planes_work, popcount_work
from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.channel_program import LONG_BLOCK, SHORT_BLOCK
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount import Alphabet

_COEFFICIENTS = Path(__file__).with_suffix(".json")
#: Which measured instruction set stands in for one that was not.
_NEAREST = {"neon": "avx2_lookup"}

Costs = Mapping[str, float]


@dataclass(frozen=True)
class Caches:
    """Bytes of the data caches of the machine that was measured."""

    l1: int
    l2: int


@dataclass(frozen=True)
class CostModel:
    """Nanoseconds per operation of each kernel, for one instruction set."""

    pack: Costs
    popcount: Costs
    planes: Costs
    counting: Costs
    caches: Caches

    def popcount_ns(self, geometry: ConvGeometry, alphabet: Alphabet, isa: Isa, *, zero_padded: bool) -> float:
        """Packing and the popcount kernel."""
        work = popcount_work(geometry, alphabet, isa, zero_padded=zero_padded)
        return self._pack_ns(geometry) + nanoseconds(self.popcount, work)

    def bitsliced_ns(self, layout: PlaneLayout, lists: ListWork, *, zero_padded: bool) -> float:
        """Packing and the bit-sliced kernels."""
        counting = counting_work(layout, lists, zero_padded=zero_padded, l1=self.caches.l1, l2=self.caches.l2)
        planes = nanoseconds(self.planes, planes_work(layout))
        return self._pack_ns(layout.geometry) + planes + nanoseconds(self.counting, counting)

    def _pack_ns(self, geometry: ConvGeometry) -> float:
        return nanoseconds(self.pack, pack_work(geometry, l2=self.caches.l2))

    def node_overhead(self, layout: PlaneLayout) -> float:
        """What a synthetic node of a channel tree costs beside the planes of its edge, in planes.

        That is the node, and what its two lists lose by being padded and by ending in short blocks.
        """

        def counted(lists: ListWork) -> float:
            work = counting_work(layout, lists, zero_padded=False, l1=self.caches.l1, l2=self.caches.l2)
            return nanoseconds(self.counting, work)

        nothing = counted(ListWork(0, 0, 0))
        plane = (counted(ListWork(1, 0, 0)) - nothing) / LONG_BLOCK
        # A list ends anywhere: half of the short blocks that make a long one, the last of them half full.
        short_blocks = (LONG_BLOCK / SHORT_BLOCK - 1) / 2
        ending = 2 * (short_blocks * SHORT_BLOCK - SHORT_BLOCK / 2)
        return max(0.0, (counted(ListWork(0, 2 * short_blocks, 1)) - nothing) / plane - ending)


def nanoseconds(costs: Costs, work: Work) -> float:
    """The time of ``work``.

    Raises:
        KeyError: it holds an operation that was not measured.
    """
    return sum(costs[name] * count for name, count in work.items())


def entry_name(isa: Isa) -> str:
    """The name in ``cost_model.json`` of what is measured on a machine for ``isa``."""
    return isa.popcount if isa.vendor == "any" else f"{isa.popcount} {isa.vendor}"


@functools.cache
def load_cost_model(isa: Isa) -> CostModel:
    """The costs for ``isa`` on its vendor's cores, on any, or for the nearest measured instruction set."""
    entries = json.loads(_COEFFICIENTS.read_text(encoding="utf-8"))["instruction_sets"]
    entry = entries.get(entry_name(isa)) or entries.get(isa.popcount) or entries[_NEAREST[isa.popcount]]
    return CostModel(
        pack=entry["pack"],
        popcount=entry["popcount"],
        planes=entry["planes"],
        counting=entry["counting"],
        caches=Caches(**entry["caches"]),
    )
