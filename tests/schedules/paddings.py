"""The paddings that the tests of convolution kernels run through."""

from __future__ import annotations

from dataclasses import dataclass

from bnn_compiler.schedules.popcount import Alphabet


@dataclass(frozen=True)
class Padding:
    """What surrounds an image: an alphabet, the ring's bits, and what they stand for."""

    alphabet: Alphabet
    zero_padded: bool
    pad_code: int
    pad_value: int


PADDINGS = {
    "bipolar-zero": Padding("bipolar", True, 0, 0),
    "bipolar-minus": Padding("bipolar", False, 0, -1),
    "bipolar-plus": Padding("bipolar", False, 1, 1),
    "unsigned-zero": Padding("unsigned", True, 0, 0),
    "unsigned-one": Padding("unsigned", False, 1, 1),
    "ternary": Padding("ternary", True, 0, 0),
}
