"""The sizes of a bit-sliced convolution: bits of its counters, layout of its planes, what shapes the loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.bit_unslice import unslice_order
from bnn_compiler.schedules.channel_program import LONG_BLOCK, ChannelProgram, usual_slots
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_bits, code_step

#: Plane additions from which threads share a layer: about 40 microseconds.
_PARALLEL_PLANES = 1 << 17


def counter_bits(geometry: ConvGeometry, alphabet: Alphabet) -> int:
    """Planes of a counter that holds the largest code at every weight of a channel: nothing can overflow it.

    They are at least the levels of a long block's carry-save tree, above those of lower codes.
    """
    weights = geometry.group_in_channels * geometry.kernel[0] * geometry.kernel[1]
    levels = code_bits(alphabet)
    return max((weights * ((1 << levels) - 1)).bit_length(), LONG_BLOCK.bit_length() - 1 + levels - 1)


def make_layout(geometry: ConvGeometry, alphabet: Alphabet, isa: Isa, lanes: int | None = None) -> PlaneLayout:
    """The layout of planes that suits ``isa``, with its widest vectors unless ``lanes`` says otherwise."""
    return PlaneLayout(
        geometry, alphabet, lanes or isa.vector_bits // WORD_BITS, unslice_order(counter_bits(geometry, alphabet), isa)
    )


@dataclass(frozen=True)
class BitslicedSizes:
    """The sizes that shape the loops."""

    layout: PlaneLayout
    bits: int
    classes: int
    has_classes: bool
    slots: int
    planes: int
    isa: Isa

    @property
    def is_parallel(self) -> bool:
        """Whether blocks of pixels are worth being shared among threads: starting them costs some microseconds."""
        blocks = sum(run.blocks for run in self.layout.runs)
        return blocks * self.layout.levels * self.planes >= _PARALLEL_PLANES

    @property
    def factor(self) -> int:
        """f of the module's identity."""
        return 2 * code_step(self.layout.alphabet)


def make_sizes(
    layout: PlaneLayout, program: ChannelProgram, constants: Sequence[NDArray[np.generic]], isa: Isa
) -> BitslicedSizes:
    """The sizes of a kernel; ``constants`` begin with a table [O, classes], and are more than one with classes."""
    sizes = BitslicedSizes(
        layout,
        counter_bits(layout.geometry, layout.alphabet),
        constants[0].shape[1],
        len(constants) > 1,
        max(program.slots, usual_slots(layout.geometry.group_out_channels)),
        program.planes,
        isa,
    )
    if layout.order != unslice_order(sizes.bits, isa):
        raise ValueError(f"planes in the order {layout.order!r}; make_layout gives the one that fits {isa.name}")
    return sizes
