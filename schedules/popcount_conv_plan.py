"""The sizes that shape the loops of a popcount convolution, and the shape of the bits it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bnn_compiler.schedules.border_classes import border_classes
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.intrinsics import VectorPopcount, vector_popcount
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount import Alphabet, code_bits, planes, words_per

#: Bytes of im2col columns per band: a part of every L2 cache the kernels are meant for.
_BAND_BYTES = 128 * 1024
#: Weights that stay in L1 beside columns and results.
_L1_WEIGHTS = 32 * 1024
#: What turning a vector of counts costs, in steps of counting (see ``popcount_conv_channels``), and the share of the
#: counting that must be saved for it.
_TURN_STEPS = 4
_WORTH_TURNING = 0.97
#: Tables of border corrections are padded to vectors of this many entries.
TABLE_ALIGN = 16
#: Words that are worth being counted by several threads: starting them costs one to three microseconds, and a core with
#: VPOPCNTQ counts these in about eight.
_SHARED_WORDS = 1 << 18
#: Into so many bands of at least so many pixels an image is cut for them: fewer do not fill whole tiles.
_SHARED_BANDS = (4, 2)
_SHARED_PIXELS = 384


def conv_bits_shape(geometry: ConvGeometry, alphabet: Alphabet) -> tuple[int, ...]:
    """Shape of the packed activation (uint64) that a convolution reads."""
    words = planes(alphabet) * words_per(geometry.group_in_channels)
    return (geometry.batch, geometry.groups, words, geometry.padded_height, geometry.padded_width)


def padded_classes(classes: int) -> int:
    """Entries of a channel's table of border corrections."""
    return -(-classes // TABLE_ALIGN) * TABLE_ALIGN


@dataclass(frozen=True)
class PopcountPlan:
    """The sizes that shape the loops."""

    geometry: ConvGeometry
    alphabet: Alphabet
    has_table: bool
    offset_per_channel: bool
    isa: Isa

    @property
    def unit(self) -> VectorPopcount:
        """How the CPU counts bits."""
        return vector_popcount(self.isa)

    @property
    def words(self) -> int:
        """Words per pixel and group."""
        return planes(self.alphabet) * words_per(self.geometry.group_in_channels)

    @property
    def depth(self) -> int:
        """Words of activation per dot product."""
        return self.words * self.geometry.kernel[0] * self.geometry.kernel[1]

    @property
    def weight_depth(self) -> int:
        """Words of weights per dot product: the planes of a code share them."""
        return self.depth // code_bits(self.alphabet)

    @property
    def pixels(self) -> int:
        """Output pixels of an image."""
        return self.geometry.out_height * self.geometry.out_width

    @property
    def classes(self) -> int:
        """Entries of the offset table per channel."""
        return padded_classes(len(border_classes(self.geometry)[1])) if self.has_table else 1

    @property
    def class_entries(self) -> int:
        """Entries of the map of border classes: those of the pixels, and enough to be loaded as a vector."""
        return max(self.pixels, TABLE_ALIGN)

    @property
    def is_pointwise(self) -> bool:
        """Whether the bits are already the columns."""
        geometry = self.geometry
        unpadded = (geometry.padded_height, geometry.padded_width) == (geometry.out_height, geometry.out_width)
        return geometry.kernel == (1, 1) and unpadded and self.pixels >= self.unit.lanes

    @property
    def band_rows(self) -> int:
        """Output rows whose columns are gathered at a time; bands overlap where this does not divide the height."""
        height, width = self.geometry.out_height, self.geometry.out_width
        if self.is_pointwise:
            return height
        fitting = max(_BAND_BYTES // (self.depth * width * 8), -(-self.unit.lanes // width), 1)
        if self._image_words >= _SHARED_WORDS:
            for bands in _SHARED_BANDS:
                rows = height // bands
                if height % bands == 0 and rows <= fitting and rows * width >= _SHARED_PIXELS:
                    return rows
        return -(-height // -(-height // fitting)) if fitting < height else height

    @property
    def bands(self) -> int:
        """Bands of output rows per image and group."""
        return -(-self.geometry.out_height // self.band_rows)

    @property
    def shared(self) -> Literal["images", "bands", "channels", None]:
        """What threads share: the images of a batch, an image's bands, a band's channels, or nothing.

        With bands a thread works on rows of the image from the layer before to the layer behind, which stay in its
        caches; where a result's bits are gathered, bands that overlap would race for the same words.
        """
        geometry = self.geometry
        if self._image_words * geometry.batch < _SHARED_WORDS:
            return None
        if geometry.batch > 1:
            return "images"
        if self.bands > 1 and geometry.out_height % self.band_rows == 0:
            return "bands"
        return "channels" if self._image_words >= _SHARED_WORDS * self.bands else None

    @property
    def _image_words(self) -> int:
        """Words of activation that are counted in an image."""
        return self.depth * self.pixels * self.geometry.out_channels

    @property
    def channels_in_lanes(self) -> bool:
        """Whether vectors run over output channels, because pixels would leave too many lanes empty."""
        channels, lanes = self.geometry.group_out_channels, self.unit.lanes
        if self.bands > 1 or (self.geometry.groups > 1 and channels % lanes):
            return False
        of_pixels, of_channels = -(-self.pixels // lanes) * channels, -(-channels // lanes) * self.pixels
        return of_channels * (self.depth + _TURN_STEPS) <= _WORTH_TURNING * of_pixels * self.depth

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Shape of the packed weights: channels outside, or as many as a vector has lanes innermost."""
        channels, lanes = self.geometry.out_channels, self.unit.lanes
        if self.channels_in_lanes:
            return (-(-channels // lanes), self.weight_depth, lanes)
        return (channels, self.weight_depth)

    @property
    def prefetches_weights(self) -> bool:
        """Whether weights are worth asking for early: rows of a few hundred bytes are too short for the hardware."""
        return self.geometry.out_channels * self.weight_depth * 8 > _L1_WEIGHTS

    @property
    def column_stride(self) -> int:
        """Elements between rows of the columns: whole vectors, and no multiple of 4 KiB, which would alias in L1."""
        if self.is_pointwise:
            return self.pixels
        stride = -(-self.band_rows * self.geometry.out_width // 8) * 8
        return stride + 8 if stride % 512 == 0 else stride


@dataclass(frozen=True)
class PopcountSizes:
    """Trip counts of the loops, per image, group and band unless said otherwise.

    ``counters`` vectors of counts, in ``tiles`` columns of register tiles (the vectors that meet one broadcast word),
    ``depth`` words per dot product; ``results`` vectors are handed on. ``copied_rows`` rows of each of the ``depth``
    columns (none where the bits are the columns).
    """

    bands: int
    counters: int
    tiles: int
    results: int
    depth: int
    copied_rows: int


def popcount_sizes(geometry: ConvGeometry, alphabet: Alphabet, isa: Isa) -> PopcountSizes:
    """The sizes of the kernel's loops, for estimates of its time."""
    plan = PopcountPlan(geometry, alphabet, has_table=False, offset_per_channel=False, isa=isa)
    channels, pixels = geometry.group_out_channels, plan.band_rows * geometry.out_width
    vectors, words = -(-pixels // plan.unit.lanes), channels
    results = vectors * words
    if plan.channels_in_lanes:
        vectors, words = -(-channels // plan.unit.lanes), pixels
    tiles = -(-vectors // plan.unit.tile[0]) * words
    copied = 0 if plan.is_pointwise else plan.band_rows
    return PopcountSizes(plan.bands, vectors * words, tiles, results, plan.depth, copied)
