"""Binarise and pack: the kernels from float activations to the bits that the popcount kernels read, in one pass.

What becomes a bit stands in ``pack_rule``, how words are gathered in ``word_packer``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from bnn_compiler.schedules.geometry import ConvGeometry
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
    load,
    serial,
    store,
    workspace,
)
from bnn_compiler.schedules.pack_rule import FloatDtype, PackRule, Predicate
from bnn_compiler.schedules.padding_ring import copy_into_ring
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_bits, planes, words_per
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.word_packer import WordPacker

#: Attribute of the kernels of ``pack_conv_activations``: what ``read_pack`` reads.
PACK_ATTR = "bnnc.pack"


def read_pack(text: str) -> tuple[ConvGeometry, PackRule, int]:
    """The reader's geometry, the rule and the ring's code of a kernel with the attribute ``PACK_ATTR``."""
    entries = json.loads(text)

    def immutable(value: Any) -> Any:
        return tuple(map(immutable, value)) if isinstance(value, list) else value

    geometry, rule = ({name: immutable(value) for name, value in entries[key].items()} for key in ("geometry", "rule"))
    return ConvGeometry(**geometry), PackRule(**rule), int(entries["pad_code"])


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
    kernel = build_kernel(name, name, arguments, lambda buffers: _emit_conv(geometry, rule, pad_code, isa, buffers))
    description = {"geometry": asdict(geometry), "rule": asdict(rule), "pad_code": pad_code}
    return kernel.with_attr(PACK_ATTR, json.dumps(description))


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


def _emit_dense(rows: int, features: int, rule: PackRule, isa: Isa, buffers: Mapping[str, Buffer]) -> None:
    words = words_per(features)
    packer = WordPacker(words, features, rule, isa, buffers, row_parameters=False)
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
    packer = WordPacker(pixels, geometry.in_channels, rule, isa, buffers, row_parameters=True)
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
