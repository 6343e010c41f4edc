"""How much work the kernels of a convolution do: counts of their operations, from shapes alone.

Each function returns a mapping from the name of an operation to how often it is done. ``cost_model.py`` multiplies the
counts with measured times, and ``benchmarks/calibrate_cost_model.py`` measures those. Operations on vectors carry the
vector's width in their name, as a narrow vector costs nearly as much as a wide one: ``long_512`` is a long block of
planes added to (or taken from) counters of 512 pixels.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.border_classes import has_border_correction
from bnn_compiler.schedules.channel_program import LONG_BLOCK, SHORT_BLOCK
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import copy_lanes
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet
from bnn_compiler.schedules.popcount_conv_plan import popcount_sizes

Work = dict[str, float]

#: Inputs and outputs share the second-level cache with planes and each other.
_SHARED_BY = 4


@dataclass(frozen=True)
class ListWork:
    """What the nodes of all groups ask of one block of pixels: blocks of planes, and nodes (channels included)."""

    long_blocks: float
    short_blocks: float
    nodes: int

    @property
    def planes(self) -> float:
        """Planes counted, padding included."""
        return LONG_BLOCK * self.long_blocks + SHORT_BLOCK * self.short_blocks

    @classmethod
    def of_lists(cls, lengths: Array, nodes: int) -> ListWork:
        """The work of lists of these lengths, each padded to whole short blocks."""
        padded = -(-lengths // SHORT_BLOCK) * SHORT_BLOCK
        return cls(float(np.sum(padded // LONG_BLOCK)), float(np.sum(padded % LONG_BLOCK)) / SHORT_BLOCK, nodes)


def pack_work(geometry: ConvGeometry, *, l2: int) -> Work:
    """The kernel from floats to packed bits, with a second-level cache of ``l2`` bytes."""
    floats = geometry.batch * geometry.in_channels * geometry.height * geometry.width
    return {"float": floats, "far_float": floats * _outside(4 * floats, l2 // _SHARED_BY), "call": 1}


def popcount_work(geometry: ConvGeometry, alphabet: Alphabet, isa: Isa, *, zero_padded: bool) -> Work:
    """The popcount kernel without packing."""
    sizes = popcount_sizes(geometry, alphabet, isa)
    bands = sizes.bands * geometry.batch * geometry.groups
    results = bands * sizes.results
    work = _copies(geometry, sizes.depth * bands, sizes.copied_rows)
    work["word"] = bands * sizes.counters * sizes.depth
    work["tile_word"] = bands * sizes.tiles * sizes.depth
    work["result"] = results
    if has_border_correction(geometry, alphabet, zero_padded):
        work["border"] = results
    work["call"] = 1
    return work


def planes_work(layout: PlaneLayout) -> Work:
    """The kernel from packed bits to bit planes."""
    geometry = layout.geometry
    columns = geometry.groups * layout.taps // WORD_BITS
    work = _copies(geometry, columns * geometry.batch, geometry.out_height)
    for run in layout.runs:
        work[f"transpose_{run.lanes * WORD_BITS}"] = columns * run.blocks
    work["call"] = 1
    return work


def counting_work(layout: PlaneLayout, lists: ListWork, *, zero_padded: bool, l1: int, l2: int) -> Work:
    """The kernel that counts along a tree and makes outputs, with data caches of ``l1`` and ``l2`` bytes."""
    geometry = layout.geometry
    work: defaultdict[str, float] = defaultdict(float)
    totals = geometry.groups * layout.taps
    for run in layout.runs:
        bits = run.lanes * WORD_BITS
        outside = _outside(layout.taps * bits // 8, l1)
        work[f"long_{bits}"] += run.blocks * (lists.long_blocks + totals / LONG_BLOCK)
        work[f"short_{bits}"] += run.blocks * lists.short_blocks
        work[f"outside_{bits}"] += run.blocks * (lists.planes + totals) * outside
        work[f"node_{bits}"] += run.blocks * lists.nodes
        work[f"channel_{bits}"] += run.blocks * geometry.out_channels
    outputs = layout.pixels * geometry.out_channels
    work["output"] = outputs
    work["far_output"] = outputs * _outside(4 * outputs, l2 // _SHARED_BY)
    if has_border_correction(geometry, layout.alphabet, zero_padded):
        work["border"] = work["output"]
    if geometry.batch > 1:
        work["copied"] = work["output"]
    work["call"] = 1
    return dict(work)


def _copies(geometry: ConvGeometry, columns: float, rows: int) -> Work:
    """Rows of columns gathered: vectors of contiguous words, or words picked one by one."""
    lanes = copy_lanes(geometry.out_width, 8)
    vectors = columns * rows * -(-geometry.out_width // lanes)
    return {"copy": vectors} if geometry.strides[1] == 1 else {"pick": vectors * lanes}


def _outside(working_set: int, cache: int) -> float:
    """The share of a working set that a cache does not hold."""
    return max(0.0, 1.0 - cache / working_set) if working_set else 0.0
