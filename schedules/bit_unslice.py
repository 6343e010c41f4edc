"""Un-slicing: the numbers that a bit-sliced counter holds, as float32 vectors of adjacent pixels.

Each un-slicer returns floats F with  count = (F − offset)·step,  exact in float32, and leaves that affine map to the
epilogue's multiply-add.

``FieldUnslicer`` transposes 16-bit fields by butterflies of shifts and masks, on any CPU. ``AffineUnslicer`` works on
bytes: planes that make one byte are brought together by three stages of byte shuffles, one ``vgf2p8affineqb``
transposes the 8 x 8 bits in each 64-bit word, and one shuffle puts low and high bytes of adjacent pixels side by side.
The 16-bit numbers then become floats without conversion, as mantissas: 0x4B00 above 16 bits m is the float 2^23 + m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from tvm import tirx

from bnn_compiler.schedules.bit_matrix import butterflies, exchange_bytes
from bnn_compiler.schedules.bit_planes import PixelOrder
from bnn_compiler.schedules.intrinsics import affine_transpose, has_affine_transpose
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import Expr, bind, constant, typed

#: Counters have at most this many planes.
MOST_BITS = 16
#: The high half of float32 2^23 … 2^24: a mantissa's low half counts ones.
_MANTISSA_BASE = 1 << 23
_MANTISSA_HIGH_WORD = 0x4B00


class Unslicer(ABC):
    """Un-slices counters of ``bits`` planes of ``lanes`` 64-bit words."""

    #: Where the pixels of a block lie in a plane.
    order: PixelOrder

    def __init__(self, bits: int, lanes: int) -> None:
        self.bits = bits
        self.lanes = lanes

    @property
    def width(self) -> int:
        """Floats per vector."""
        return 2 * self.lanes

    @property
    @abstractmethod
    def offset(self) -> int:
        """What the floats exceed the scaled counts by."""

    @property
    @abstractmethod
    def step(self) -> float:
        """Counts per unit of the floats."""

    @abstractmethod
    def floats(self, planes: Sequence[Expr], pixels: int) -> Iterator[tuple[int, Expr]]:
        """(first pixel in the block, float32 x width) for at least the first ``pixels`` pixels, in order."""


class FieldUnslicer(Unslicer):
    """16 planes to 16 words of 16-bit fields by butterflies; then fields are permuted and converted."""

    order: PixelOrder = "fields"

    @property
    def offset(self) -> int:
        """See ``Unslicer``."""
        return 0

    @property
    def step(self) -> float:
        """See ``Unslicer``."""
        return 1.0

    def floats(self, planes: Sequence[Expr], pixels: int) -> Iterator[tuple[int, Expr]]:
        """See ``Unslicer``."""
        lanes, width = self.lanes, self.width
        padded: list[Expr | None] = [*planes, *([None] * (MOST_BITS - self.bits))]
        for i, word in enumerate(butterflies(padded, (8, 4, 2, 1), lanes)):
            if 4 * lanes * i >= pixels:
                return
            fields = bind(tirx.reinterpret(typed("uint16", 4 * lanes), word))
            for half in range(2):
                # Field 4·l + a of the vector is pixel L·a + l of its group.
                order = [4 * (pixel % lanes) + pixel // lanes for pixel in range(half * width, (half + 1) * width)]
                chosen = tirx.Shuffle([fields], [tirx.const(field, "int32") for field in order])
                widened = chosen.astype(typed("int32", width)).astype(typed("float32", width))
                yield 4 * lanes * i + half * width, bind(widened)


class AffineUnslicer(Unslicer):
    """Bytes by ``vgf2p8affineqb``; see the module."""

    order: PixelOrder = "bytes"

    @property
    def _shift(self) -> int:
        """Counts are shifted to the top of 16 bits, which leaves precision for the epilogue's constants."""
        return MOST_BITS - self.bits

    @property
    def offset(self) -> int:
        """See ``Unslicer``."""
        return _MANTISSA_BASE

    @property
    def step(self) -> float:
        """See ``Unslicer``."""
        return 2.0**-self._shift

    def floats(self, planes: Sequence[Expr], pixels: int) -> Iterator[tuple[int, Expr]]:
        """See ``Unslicer``."""
        lanes, width = self.lanes, self.width
        octets = typed("uint8", 8 * lanes)
        bits: list[Expr | None] = [None] * self._shift
        bits += [bind(tirx.reinterpret(octets, plane)) for plane in planes]
        low, high = (self._bytes(bits[start : start + 8]) for start in (0, 8))
        exponent = constant(_MANTISSA_HIGH_WORD, "uint16", 4 * lanes)
        for group in range(8):
            for half in range(2):
                first = (8 * group + 4 * half) * lanes
                if first >= pixels:
                    return
                words = bind(self._words(low[group], high[group], half))
                for quarter, order in enumerate(interleave_order(4 * lanes)):
                    if first + quarter * width < pixels:
                        joined = tirx.Shuffle([words, exponent], _indices(order))
                        yield first + quarter * width, bind(tirx.reinterpret(typed("float32", width), joined))

    def _bytes(self, planes: Sequence[Expr | None]) -> list[Expr | None]:
        """Vector m: in lane l, byte r, the 8-bit number of bit 8·m + r of lane l. Planes lowest bit first."""
        if all(plane is None for plane in planes):
            return [None] * 8
        octets = typed("uint8", 8 * self.lanes)
        # The instruction takes the highest bit from the lowest byte.
        words = exchange_bytes([*reversed(planes)], self.lanes)
        return [
            None if word is None else bind(tirx.reinterpret(octets, affine_transpose(word, self.lanes)))
            for word in words
        ]

    def _words(self, low: Expr | None, high: Expr | None, half: int) -> Expr:
        """uint16 x 4L of adjacent pixels, in the order that ``interleave_order`` straightens."""
        lanes = self.lanes
        zero = constant(0, "uint8", 8 * lanes)
        order = []
        for quarter_pixel in interleaved_pixels(4 * lanes):
            pixel = 4 * half * lanes + quarter_pixel
            position = 8 * (pixel % lanes) + pixel // lanes
            order += [position, 8 * lanes + position]
        pair = [zero if low is None else low, zero if high is None else high]
        return tirx.reinterpret(typed("uint16", 4 * lanes), tirx.Shuffle(pair, _indices(order)))


def interleave_order(words: int) -> tuple[list[int], list[int]]:
    """Shuffle indices of ``vpunpcklwd`` and ``vpunpckhwd``: words of a and b in turn, from half of each 128 bits."""
    halves = []
    for half in range(2):
        chosen = [8 * (i // 4) + 4 * half + i % 4 for i in range(words // 2)]
        halves.append([index for word in chosen for index in (word, words + word)])
    return halves[0], halves[1]


def interleaved_pixels(words: int) -> list[int]:
    """Which pixel belongs in each word so that ``interleave_order`` gives pixels 0 … words/2 − 1, then the rest."""
    low, high = interleave_order(words)
    pixels = [0] * words
    for pixel, word in enumerate([*low[::2], *high[::2]]):
        pixels[word] = pixel
    return pixels


def _indices(order: Sequence[int]) -> list[Expr]:
    return [tirx.const(index, "int32") for index in order]


#: Counters that fit the mantissa trick: f·2^(23 − shift) stays below 2^24 with f = 4 and shift >= 2.
_MOST_AFFINE_BITS = 14


def make_unslicer(bits: int, lanes: int, isa: Isa) -> Unslicer:
    """The fastest un-slicer for ``isa``; at most 16 bits."""
    if bits > MOST_BITS:
        raise ValueError(f"counters of {bits} bits; un-slicing takes {MOST_BITS}")
    if unslice_order(bits, isa) == "bytes":
        return AffineUnslicer(bits, lanes)
    return FieldUnslicer(bits, lanes)


def unslice_order(bits: int, isa: Isa) -> PixelOrder:
    """The order of pixels that the fastest un-slicer wants."""
    return "bytes" if has_affine_transpose(isa) and bits <= _MOST_AFFINE_BITS else "fields"
