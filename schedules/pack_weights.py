"""Packs the signs of binary weights into the layouts that the popcount kernels read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, words_per

UInt64Array = NDArray[np.uint64]

#: Output features next to each other in the packed weights of a dense layer; every kernel's lanes divide it.
DENSE_INTERLEAVE = 8


def pack_conv_weights(signs: NDArray[np.bool_], alphabet: Alphabet) -> UInt64Array:
    """Pack bool [O, Cg, kh, kw] (True = +1) into uint64 [O, K], K = planes·ceil(Cg/64)·kh·kw in order (word, ky, kx).

    Bit c of a word is input channel 64·word + c; a ternary alphabet adds the words of the negated signs.
    """
    out_channels, channels = signs.shape[:2]
    stacked = [signs, ~signs] if alphabet == "ternary" else [signs]
    packed = [pack_words(np.moveaxis(part, 1, -1), words_per(channels)) for part in stacked]
    words = np.concatenate(packed, axis=-1)
    return np.ascontiguousarray(np.moveaxis(words, -1, 1)).reshape(out_channels, -1)


def pack_dense_weights(signs: NDArray[np.bool_], alphabet: Alphabet) -> UInt64Array:
    """Pack bool [N, K] (True = +1) into uint64 [ceil(N/8), planes·KW, 8] with KW = ceil(K/64).

    Eight output features lie next to each other; features past N are zero words. Bits are in the strided order of dense
    activations: bit c of word l is input feature c·KW + l.
    """
    depth = signs.shape[1]
    words = words_per(depth)
    stacked = [signs, ~signs] if alphabet == "ternary" else [signs]
    packed = [pack_words(strided_order(part, words), words) for part in stacked]
    rows = np.concatenate(packed, axis=-1)
    return interleaved(rows, DENSE_INTERLEAVE)


def interleaved(rows: UInt64Array, count: int) -> UInt64Array:
    """Rows uint64 [N, K], ``count`` at a time side by side: [ceil(N/count), K, count], zero words past the last row."""
    blocks = -(-len(rows) // count)
    padded = np.zeros((blocks * count, rows.shape[1]), np.uint64)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(blocks, count, -1).swapaxes(1, 2))


def strided_order(bits: NDArray[np.bool_], words: int) -> NDArray[np.bool_]:
    """Reorder bool [..., K] so that packing it consecutively puts feature c·words + l at bit c of word l."""
    padded = np.zeros((*bits.shape[:-1], WORD_BITS * words), np.bool_)
    padded[..., : bits.shape[-1]] = bits
    return padded.reshape(*bits.shape[:-1], WORD_BITS, words).swapaxes(-1, -2).reshape(padded.shape)


def pack_words(bits: NDArray[np.bool_], words: int) -> UInt64Array:
    """Pack the last axis, LSB first, into ``words`` words; bits past its end are 0."""
    octets = np.packbits(bits, axis=-1, bitorder="little")
    padded = np.zeros((*octets.shape[:-1], 8 * words), np.uint8)
    padded[..., : octets.shape[-1]] = octets
    return padded.view("<u8").astype(np.uint64)
