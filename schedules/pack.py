"""Binarise and pack: float activations to the bits that the popcount kernels read, in one pass.

bit = predicate(v, threshold) with v = x, or v = x·scale + shift per channel (a folded batch normalisation, say).
Adjacent pixels fill the lanes of a vector; 32 channels are gathered into a vector of 32-bit masks, one compare and one
masked *or* each, and two of those make a vector of 64-bit words.

Predicates follow IEEE 754: all but ``ne`` and the negated ones (``nge`` is "not x >= t") are false on NaN.

Activations of several levels become codes of k bits, a plane each. With ordered thresholds t_1 <= t_2 <= …, the code
changes from c_{i-1} to c_i at t_i, so bit p is the exclusive or of [v predicate t_i] over those i that change bit p:
about two masked operations per threshold, whatever the codes are.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from tvm import tirx

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.intrinsics import fused_multiply_add
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    copy_lanes,
    load,
    register,
    serial,
    splat,
    store,
    tile_starts,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_bits, planes, words_per
from bnn_compiler.schedules.popcount_conv import conv_bits_shape

Predicate = Literal["ge", "gt", "le", "lt", "eq", "ne", "nge", "ngt", "nle", "nlt"]
FloatDtype = Literal["float16", "float32", "float64"]

#: Vectors of pixels side by side: whole cache lines of every channel, and the loop's bookkeeping shared.
_TILE_VECTORS = 4
_HALF_BITS = WORD_BITS // 2


@dataclass(frozen=True)
class PackRule:
    """How an activation becomes a bit (or, ternary, two; or the bits of a code).

    ``threshold`` is a number, or "channel" for a buffer with one per channel (feature). ``affine`` says that buffers
    scale and shift are given and applied first. A threshold buffer is float64 for float64 activations, all else is
    float32 (float16 activations are converted, which is exact). A ternary
    alphabet packs v > threshold, then v < threshold, and takes the predicate ``gt`` only.

    ``codes`` are for alphabets of codes: the code below all thresholds, which is 0, and the code from each threshold
    on. There is one threshold less than codes, ascending: a tuple, or "channel" for a buffer [thresholds, channels].
    The predicate is ``ge`` or, where NaN is above all thresholds, ``nlt``; any with a single threshold.
    """

    predicate: Predicate = "ge"
    threshold: float | tuple[float, ...] | Literal["channel"] = 0.0
    alphabet: Alphabet = "bipolar"
    affine: bool = False
    dtype: FloatDtype = "float32"
    codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a ternary alphabet with another predicate, an affine map of float64, codes that do not fit."""
        if self.affine and self.dtype == "float64":
            raise ValueError("an affine map is applied in float32: cast float64 activations first")
        if self.alphabet == "ternary" and self.predicate != "gt":
            raise ValueError(f"ternary activations are packed with predicate 'gt', found {self.predicate!r}")
        if code_bits(self.alphabet) == 1 and not self.codes and not isinstance(self.threshold, tuple):
            return
        bits = code_bits(self.alphabet)
        if bits == 1 or len(self.codes) < 2 or self.codes[0] != 0 or not all(0 <= c < 1 << bits for c in self.codes):
            raise ValueError(f"the codes {self.codes} do not fit {self.alphabet} activations")
        if self.threshold != "channel" and len(self.thresholds) != len(self.codes) - 1:
            raise ValueError(f"{len(self.codes)} codes have {len(self.codes) - 1} thresholds, found {self.threshold}")
        if len(self.codes) > 2 and self.predicate not in ("ge", "nlt"):
            raise ValueError(f"codes are packed with predicate 'ge' or 'nlt', found {self.predicate!r}")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The constant thresholds; none where they come in a buffer."""
        if self.threshold == "channel":
            return ()
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    def changes(self, plane: int) -> tuple[int, ...]:
        """The thresholds at which bit ``plane`` of the code changes."""
        pairs = itertools.pairwise(self.codes)
        return tuple(i for i, (before, after) in enumerate(pairs) if (before ^ after) >> plane & 1)

    @property
    def compute_dtype(self) -> str:
        """The type of the comparison."""
        return "float64" if self.dtype == "float64" else "float32"

    def predicates(self) -> tuple[Predicate, ...]:
        """One predicate per bit plane."""
        return ("gt", "lt") if self.alphabet == "ternary" else (self.predicate,)

    def parameters(self, length: int) -> list[Argument]:
        """The parameter buffers, between the activation and the bits."""
        names = ["scale", "shift"] if self.affine else []
        arguments = [Argument(name, (length,), self.compute_dtype) for name in names]
        if self.threshold == "channel":
            shape = (len(self.codes) - 1, length) if self.codes else (length,)
            arguments.append(Argument("threshold", shape, self.compute_dtype))
        return arguments


def pack_conv_activations(
    geometry: ConvGeometry,
    *,
    isa: Isa,
    predicate: Predicate = "ge",
    threshold: float | tuple[float, ...] | Literal["channel"] = 0.0,
    alphabet: Alphabet = "bipolar",
    codes: tuple[int, ...] = (),
    pad_code: int = 0,
    affine: bool = False,
    dtype: FloatDtype = "float32",
) -> PrimFunc:
    """The kernel (x [N, C, H, W], [scale [C], shift [C]], [threshold [C]]) -> bits, uint64 of ``conv_bits_shape``.

    Bit c of word w is channel g·Cg + 64·w + c; bits past Cg are 0. The padding ring holds ``pad_code``, a bit or a
    code, in every real channel; a ternary ring is 0, so it takes ``pad_code`` 0 only. See ``PackRule`` for the rest.
    """
    rule = PackRule(predicate, threshold, alphabet, affine, dtype, codes)
    if not 0 <= pad_code < 1 << code_bits(alphabet) or (pad_code and alphabet == "ternary"):
        raise ValueError(f"pad_code {pad_code} does not fit {alphabet} activations")
    shape = (geometry.batch, geometry.in_channels, geometry.height, geometry.width)
    arguments = [
        Argument("x", shape, dtype),
        *rule.parameters(geometry.in_channels),
        Argument("bits", conv_bits_shape(geometry, alphabet), "uint64"),
    ]
    name = f"pack_conv_{alphabet}_{isa.name}"
    return build_kernel(name, name, arguments, lambda buffers: _emit_conv(geometry, rule, pad_code, isa, buffers))


def pack_dense_activations(
    rows: int,
    features: int,
    *,
    isa: Isa,
    predicate: Predicate = "ge",
    threshold: float | tuple[float, ...] | Literal["channel"] = 0.0,
    alphabet: Alphabet = "bipolar",
    codes: tuple[int, ...] = (),
    affine: bool = False,
    dtype: FloatDtype = "float32",
) -> PrimFunc:
    """The kernel (x [M, K], [scale [K], shift [K]], [threshold [K]]) -> bits uint64 [M, planes·KW], KW = ceil(K/64).

    Bit c of word l is feature c·KW + l (0 from K on), so that lanes run over adjacent features.
    """
    rule = PackRule(predicate, threshold, alphabet, affine, dtype, codes)
    arguments = [
        Argument("x", (rows, features), dtype),
        *rule.parameters(features),
        Argument("bits", (rows, planes(alphabet) * words_per(features)), "uint64"),
    ]
    name = f"pack_dense_{alphabet}_{isa.name}"
    return build_kernel(name, name, arguments, lambda buffers: _emit_dense(rows, features, rule, isa, buffers))


class _WordPacker:
    """Packs up to 64 rows of adjacent elements into words: row c becomes bit c."""

    def __init__(
        self,
        extent: int,
        length: int,
        rule: PackRule,
        isa: Isa,
        buffers: Mapping[str, Buffer],
        *,
        row_parameters: bool,
    ):
        """``extent`` elements per row; ``row_parameters`` says that a row shares its threshold, scale and shift.

        ``length`` is the number of channels (features) that have thresholds.
        """
        self.lanes = copy_lanes(extent, isa.vector_bits // 32)
        plane_count = planes(rule.alphabet)
        self._vectors = min(_TILE_VECTORS if plane_count <= 2 else _TILE_VECTORS // 2, extent // self.lanes)
        self._extent = extent
        self._length = length
        self._rule = rule
        self._isa = isa
        self._buffers = buffers
        self._row_parameters = row_parameters
        self._masks = [
            [[register(self.lanes, "uint32") for _ in range(2)] for _ in range(plane_count)]
            for _ in range(self._vectors)
        ]

    def emit(
        self,
        count: int,
        row_at: Callable[[Index], Expr],
        parameter_at: Callable[[Index], Expr],
        store_words: Callable[[int, Index, Expr], None],
    ) -> None:
        """Pack ``count`` rows; ``row_at(c)`` and ``parameter_at(c)`` are the indices of their first elements.

        ``store_words(plane, start, words)`` stores the words of ``lanes`` elements from ``start`` on.
        """
        full, rest = tile_starts(self._extent, self.lanes, self._vectors)
        with serial(full) as tile:
            first = tile * (self._vectors * self.lanes)
            starts = [first + vector * self.lanes for vector in range(self._vectors)]
            self._emit_tile(count, starts, row_at, parameter_at, store_words)
        if rest:
            self._emit_tile(count, rest, row_at, parameter_at, store_words)

    def bits_at(self, lanes: int, x: Index, parameter: Index, bit: Expr, zero: Expr) -> list[Expr]:
        """Per plane, ``bit`` where its bit is set for the elements at ``x``, else ``zero`` (of the same type)."""
        dtype = typed(self._rule.compute_dtype, lanes)
        value = load(self._buffers["x"], x, lanes)
        if self._rule.dtype != self._rule.compute_dtype:
            value = value.astype(dtype)
        if self._rule.affine:
            scale, shift = self._parameter("scale", parameter, lanes), self._parameter("shift", parameter, lanes)
            value = fused_multiply_add(value, scale, shift, dtype, self._isa)
        if not self._rule.codes:
            bound = self._bound(0, parameter, lanes)
            return [_bit_where(predicate, value, bound, bit, zero) for predicate in self._rule.predicates()]
        value = bind(value)
        passed = [
            _bit_where(self._rule.predicate, value, self._bound(i, parameter, lanes), bit, zero)
            for i in range(len(self._rule.codes) - 1)
        ]
        changed = [[passed[i] for i in self._rule.changes(plane)] for plane in range(planes(self._rule.alphabet))]
        return [functools.reduce(operator.xor, terms, zero) for terms in changed]

    def _bound(self, i: int, parameter: Index, lanes: int) -> Expr:
        """Threshold ``i``."""
        if self._rule.threshold == "channel":
            return self._parameter("threshold", parameter + i * self._length if i else parameter, lanes)
        return constant(self._rule.thresholds[i], self._rule.compute_dtype, lanes)

    def _parameter(self, name: str, index: Index, lanes: int) -> Expr:
        buffer = self._buffers[name]
        return splat(load(buffer, index), lanes) if self._row_parameters else load(buffer, index, lanes)

    def _emit_tile(
        self,
        count: int,
        starts: list[Index],
        row_at: Callable[[Index], Expr],
        parameter_at: Callable[[Index], Expr],
        store_words: Callable[[int, Index, Expr], None],
    ) -> None:
        lanes = self.lanes
        for half in range(2):
            for masks in self._masks:
                for plane in masks:
                    store(plane[half], 0, constant(0, "uint32", lanes), lanes)
            with serial(max(0, min(_HALF_BITS, count - half * _HALF_BITS))) as step:
                row = step + half * _HALF_BITS
                bit = bind(splat(tirx.const(1, "uint32") << step.astype("uint32"), lanes))
                x, parameter = bind(row_at(row)), parameter_at(row)
                for start, masks in zip(starts, self._masks, strict=False):
                    own_parameter = parameter if self._row_parameters else parameter + start
                    planes_bits = self.bits_at(lanes, x + start, own_parameter, bit, constant(0, "uint32", lanes))
                    for plane, bits in zip(masks, planes_bits, strict=True):
                        store(plane[half], 0, load(plane[half], 0, lanes) | bits, lanes)
        wide = typed("uint64", lanes)
        for start, masks in zip(starts, self._masks, strict=False):
            for plane_index, (low, high) in enumerate(masks):
                upper = load(high, 0, lanes).astype(wide) << constant(_HALF_BITS, "uint64", lanes)
                store_words(plane_index, start, upper | load(low, 0, lanes).astype(wide))


def _bit_where(predicate: Predicate, value: Expr, bound: Expr, bit: Expr, zero: Expr) -> Expr:
    compare = {
        "ge": lambda: value >= bound,
        "gt": lambda: value > bound,
        "le": lambda: value <= bound,
        "lt": lambda: value < bound,
        "eq": lambda: tirx.EQ(value, bound),
    }
    if predicate in compare:
        return tirx.Select(compare[predicate](), bit, zero)
    # "not equal" and the negated predicates are true on NaN: the arms of an ordered comparison swap.
    positive = "eq" if predicate == "ne" else predicate[1:]
    return tirx.Select(compare[positive](), zero, bit)


def _emit_dense(rows: int, features: int, rule: PackRule, isa: Isa, buffers: Mapping[str, Buffer]) -> None:
    words = words_per(features)
    packer = _WordPacker(words, features, rule, isa, buffers, row_parameters=False)
    with serial(rows) as row:
        target = row * (planes(rule.alphabet) * words)
        source = row * features

        def store_words(plane: int, start: Index, value: Expr) -> None:
            store(buffers["bits"], target + plane * words + start, value, packer.lanes)

        packer.emit(features // words, lambda c: source + c * words, lambda c: c * words, store_words)
        # The features behind the last whole row of the strided order: one more bit in the first words.
        whole = features // words * words
        with serial(features - whole) as rest:
            bit = constant(1 << features // words, "uint64")
            zero = constant(0, "uint64")
            for plane, bits in enumerate(packer.bits_at(1, source + whole + rest, whole + rest, bit, zero)):
                index = bind(target + plane * words + rest)
                store(buffers["bits"], index, load(buffers["bits"], index) | bits)


def _emit_conv(geometry: ConvGeometry, rule: PackRule, pad_code: int, isa: Isa, buffers: Mapping[str, Buffer]) -> None:
    pixels = geometry.height * geometry.width
    padded_pixels = geometry.padded_height * geometry.padded_width
    channels = geometry.group_in_channels
    words = words_per(channels)
    packer = _WordPacker(pixels, geometry.in_channels, rule, isa, buffers, row_parameters=True)
    plane_count = planes(rule.alphabet)
    unpadded = workspace(plane_count * pixels, "uint64") if any(geometry.pads) else None

    def pack_word(image: Expr, group: Expr, word: Index, count: int) -> None:
        channel = group * channels + word * WORD_BITS
        source = (image * geometry.in_channels + channel) * pixels
        first = (image * geometry.groups + group) * (plane_count * words) + word

        def store_words(plane: int, start: Index, value: Expr) -> None:
            if unpadded is None:
                store(buffers["bits"], (first + plane * words) * pixels + start, value, packer.lanes)
            else:
                store(unpadded, plane * pixels + start, value, packer.lanes)

        packer.emit(count, lambda c: source + c * pixels, lambda c: channel + c, store_words)
        if unpadded is not None:
            for plane in range(plane_count):
                ring = constant((1 << count) - 1 if pad_code >> plane & 1 else 0, "uint64")
                target = bind((first + plane * words) * padded_pixels)
                copy_into_ring(geometry, unpadded, plane * pixels, buffers["bits"], target, ring)

    with serial(geometry.batch) as image, serial(geometry.groups) as group:
        with serial(channels // WORD_BITS) as word:
            pack_word(image, group, word, WORD_BITS)
        if channels % WORD_BITS:
            pack_word(image, group, channels // WORD_BITS, channels % WORD_BITS)


def copy_into_ring(
    geometry: ConvGeometry, source: Buffer, source_start: Index, target: Buffer, target_start: Expr, ring: Expr
) -> None:
    """Copy an [H, W] plane of words into the middle of an [H + pads, W + pads] plane, and fill the ring around it."""
    top, left, bottom, right = geometry.pads
    width, padded_width = geometry.width, geometry.padded_width

    def fill(start: Expr, count: int) -> None:
        with serial(count) as index:
            store(target, start + index, ring)

    lanes = copy_lanes(width, 8)
    full, rest = tile_starts(width, lanes, 1)
    fill(target_start, top * padded_width)
    with serial(geometry.height) as row:
        row_target = bind(target_start + (top + row) * padded_width)
        row_source = source_start + row * width
        fill(row_target, left)
        with serial(full) as vector:
            value = load(source, row_source + vector * lanes, lanes)
            store(target, row_target + left + vector * lanes, value, lanes)
        for start in rest:
            store(target, row_target + left + start, load(source, row_source + start, lanes), lanes)
        fill(row_target + left + width, right)
    fill(target_start + (top + geometry.height) * padded_width, bottom * padded_width)
