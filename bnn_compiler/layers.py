"""One binary layer as data: what it is in the ONNX graph, what a kernel has to compute, what verification needs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.recognition.code_lattice import CodeLattice, fit_codes
from bnn_compiler.schedules.geometry import ConvGeometry

#: A change of shape: ``reshape`` to a shape, or ``permute`` by axes.
Move = tuple[Literal["reshape", "permute"], tuple[int, ...]]


@dataclass(frozen=True)
class LayerNames:
    """Where a layer stands in the ONNX graph: node, operator, and the tensors it reads and produces.

    The layer reads (gives) its tensor with the axes in the order ``input_axes`` (``output_axes``), None: as ONNX does.
    """

    node: str
    op: str
    input_tensor: str | None = None
    output_tensor: str | None = None
    input_axes: tuple[int, ...] | None = None
    output_axes: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class BinarySpec:
    """Everything a kernel needs to know of a layer.

    ``weights`` float32 [O, Cg, kh, kw] (conv) or [K, O] (dense); ``threshold`` a scalar or [C, 1, 1] / [K];
    ``direction`` likewise or None. Activations of more than two values have these as ``levels`` and one more axis in
    front of ``threshold``: level i holds from threshold i − 1 on. ``scale`` and ``bias`` float32[O] or None.
    ``geometry.pads`` is filled with ``ring``, or with ONNX's zeros where that is None. ``rounded``: the model's own
    activations are these values only up to ``step_function.MAX_RESIDUE``.
    """

    input_shape: tuple[int, ...]
    prefix: tuple[Move, ...]
    suffix: tuple[Move, ...]
    predicate: str
    threshold: Array
    direction: Array | None
    low: float
    high: float
    ring: float | None
    geometry: ConvGeometry | None
    rows: int
    weights: Array
    scale: Array | None
    bias: Array | None
    rounded: bool = False
    levels: tuple[float, ...] = ()

    @cached_property
    def binary_weights(self) -> BinaryWeights:
        """Signs [O, …] and α per output channel; raises if a hand-made composite holds weights that are not binary."""
        found = analyse_weights(self.weights if self.geometry else self.weights.T)
        if not isinstance(found, BinaryWeights):
            raise ValueError(f"composite holds weights that are not binary: {found.detail}")
        return found

    @cached_property
    def lattice(self) -> CodeLattice | None:
        """How the activation becomes codes of several bits; None where one bit (ternary: two) will do.

        Two values take several bits only if they are padded with zeros and neither is 0 or the other's opposite.

        Raises:
            ValueError: a hand-made composite holds values that are no codes.
        """
        levels = self.levels
        if not levels:
            if self.predicate == "ternary" or self.low in (0.0, -self.high) or not self.is_zero_padded:
                return None
            levels = (self.low, self.high)
        found = fit_codes(levels, zero_padded=self.is_zero_padded)
        if found is None:
            raise ValueError(f"composite holds activation values that are no codes: {levels}")
        return found

    @property
    def is_zero_padded(self) -> bool:
        """Whether zeros surround the activation."""
        return self.geometry is not None and self.ring is None and any(self.geometry.pads)

    @property
    def fan_in(self) -> int:
        """Number of weights of one output channel."""
        return int(np.prod(self.weights.shape[1:])) if self.geometry else int(self.weights.shape[0])

    @property
    def out_channels(self) -> int:
        """Number of output channels or features."""
        return int(self.weights.shape[0] if self.geometry else self.weights.shape[1])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the product, before the moves behind it."""
        if self.geometry is None:
            return (self.rows, self.out_channels)
        return (self.geometry.batch, self.out_channels, self.geometry.out_height, self.geometry.out_width)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the full layer."""
        return self.geometry.macs if self.geometry else self.rows * self.weights.size


@dataclass(frozen=True, eq=False)
class BinaryLayer:
    """What verification and reports need of a lowered layer: y = scale·z + bias with integer z.

    ``reach`` is the largest magnitude of an activation in units of z: |z| <= fan_in·reach without an offset.
    ``rounded`` as in ``BinarySpec``; such a layer is not ``exact``. ``input_axes`` and ``output_axes`` as in
    ``LayerNames``.
    """

    name: str
    function: str
    input_tensor: str | None
    output_tensor: str | None
    scale: Array
    bias: Array | None
    macs: int
    fan_in: int
    input_shape: tuple[int, ...]
    channel_axis: int
    exact: bool
    kernel: str = ""
    weight_bytes: int = 0
    rounded: bool = False
    reach: float = 1.0
    input_axes: tuple[int, ...] | None = None
    output_axes: tuple[int, ...] | None = None
