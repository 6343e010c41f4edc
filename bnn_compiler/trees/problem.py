"""The question: which matrix of signs, which limits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from bnn_compiler.errors import UsageError

Effort = Literal["fast", "default", "thorough"]
EFFORTS: tuple[Effort, ...] = ("fast", "default", "thorough")
Signs = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Distances = npt.NDArray[np.int32]

# No channel is its own parent: the diagonal of a matrix of distances.
FAR = np.int32(1 << 30)


@dataclass(frozen=True)
class TreeOptions:
    """What ``solve_channel_tree`` is asked for; see there."""

    max_depth: int = 8
    node_overhead: float = 24.0
    synthetic: bool = True
    effort: Effort = "default"
    seed: int = 0
    single_root: bool = False
    negated_parents: bool = False

    def __post_init__(self) -> None:
        """Check the options against each other."""
        if isinstance(self.max_depth, bool) or not isinstance(self.max_depth, int) or self.max_depth < 1:
            raise UsageError(f"max_depth is {self.max_depth!r}: a channel needs depth 1 at least")
        if not 0.0 <= self.node_overhead < 2.0**20:
            raise UsageError(f"node_overhead is {self.node_overhead!r}: it must be in [0, 2^20) planes")
        if self.effort not in EFFORTS:
            raise UsageError(f"effort {self.effort!r} is none of {', '.join(EFFORTS)}")
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed is {self.seed!r}: it must be in [0, 2^64)")
        if self.synthetic and (self.single_root or self.negated_parents):
            raise UsageError("single_root and negated_parents are settings of plain trees: pass synthetic=False")


@dataclass(frozen=True, eq=False)
class SignMatrix:
    """The sign matrix of a layer: ``signs`` uint8[M, N] of 0 and 1 (1 for a weight of +1), C-contiguous."""

    signs: Signs

    @property
    def channels(self) -> int:
        """M."""
        return int(self.signs.shape[0])

    @property
    def weights(self) -> int:
        """N, the weights of one channel."""
        return int(self.signs.shape[1])

    @cached_property
    def ones(self) -> npt.NDArray[np.int64]:
        """Number of +1 weights per channel, int64[M]: the distance from the all-minus root."""
        ones: npt.NDArray[np.int64] = self.signs.sum(axis=1, dtype=np.int64)
        return ones

    @cached_property
    def to_root(self) -> npt.NDArray[np.int64]:
        """Distance from the nearer root, int64[M]."""
        return np.minimum(self.ones, self.weights - self.ones)

    @cached_property
    def distances(self) -> Distances:
        """Hamming distances int32[M, M], ``FAR`` on the diagonal.

        As a product of ±1 matrices: (N - x·y) / 2. Sums stay below 2^24 in blocks, so float32 is exact in any order.
        """
        channels, weights = self.signs.shape
        products = np.zeros((channels, channels), np.int32)
        for start in range(0, weights, 1 << 22):
            block = self.signs[:, start : start + (1 << 22)].astype(np.float32) * 2 - 1
            for top in range(0, channels, 1024):
                products[top : top + 1024] += (block[top : top + 1024] @ block.T).astype(np.int32)
        distances: Distances = (weights - products) // 2
        np.fill_diagonal(distances, FAR)
        return distances

    def planes(self) -> tuple[Words, Words]:
        """The ones and the zeros as bits, uint64[M, W] each, little end first; bits past N are 0 in both."""
        return pack_bits(self.signs), pack_bits(1 - self.signs)


def sign_matrix(weights: npt.ArrayLike) -> SignMatrix:
    """Check the caller's matrix.

    Raises:
        UsageError: not two-dimensional, empty, or holding anything but 0 and 1.
    """
    array = np.asarray(weights)
    if array.ndim != 2:
        raise UsageError(f"weights have shape {array.shape}: a matrix [output channels, weights per channel] is needed")
    if array.shape[0] == 0 or array.shape[1] == 0:
        raise UsageError(f"weights have shape {array.shape}: there must be a channel and a weight")
    if array.dtype.kind not in "buif":
        raise UsageError(f"weights have dtype {array.dtype}: numbers 0 and 1 are needed")
    wrong = (array != 0) & (array != 1)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        raise UsageError(
            f"weights[{row}, {column}] is {array[row, column]}: only 0 (for -1) and 1 (for +1) are allowed; pass w > 0"
        )
    return SignMatrix(np.ascontiguousarray(array, dtype=np.uint8))


def pack_bits(bits: Signs) -> Words:
    """Pack 0/1 rows into uint64 words, bit i of word w = column 64w + i."""
    rows, columns = bits.shape
    padded = np.zeros((rows, -(-columns // 64) * 64), np.uint8)
    padded[:, :columns] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def unpack_bits(words: Words, columns: int) -> Signs:
    """Undo ``pack_bits``."""
    octets = np.ascontiguousarray(words.astype("<u8")).view(np.uint8)
    return np.unpackbits(octets, axis=1, bitorder="little")[:, :columns]
