"""From a canonical binary layer to the two kernels that compute it and their constant arguments.

The activation is packed to bits by one kernel (which layers that read the same tensor share), and the product is
counted by another. The algebra that turns the layer's alphabets, ±α weights and epilogue into one output scale and
bias:

    bipolar   a = h·x, x ∈ {−1, +1}:   y = (h·α·s)·z + b
    unsigned  a = h·x, x ∈ {0, 1}:     y = (h·α·s)·z + b
    affine    a = l + (h − l)·x:       y = ((h − l)·α·s)·z + (l·α·s·κ + b),  κ = Σ sign(w)
    ternary   a = h·x, x ∈ {−1, 0, 1}: y = (h·α·s)·z + b
    codes     a = o + e·x, x integer:  y = (e·α·s)·z + (o·α·s·κ + b)   (``code_lattice``)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx

from bnn_compiler.constants import Array
from bnn_compiler.kernels.derived_constant import Constant
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.output_chain import Chain
from bnn_compiler.schedules.pack import pack_conv_activations, pack_dense_activations
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import Alphabet, codes_alphabet
from bnn_compiler.schedules.popcount_conv_fused import FusedPart
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.popcount_dense import dense_bits_shape

#: On a kernel that computes products in another form (bits, fused operators): per product the position of the packed
#: activation among its arguments, and how many constants of the product's own kernel follow it. A flat list.
PARTS_ATTR = "bnnc.parts"


@dataclass(frozen=True, eq=False)
class Kernel:
    """A PrimFunc that takes one tensor, then ``constants``, and gives one tensor of ``shape`` and ``dtype``."""

    function: tirx.PrimFunc
    constants: tuple[Constant, ...]
    shape: tuple[int, ...]
    dtype: str

    @property
    def name(self) -> str:
        """The kernel's name for people."""
        return str(self.function.attrs["bnnc.kernel"])


@dataclass(frozen=True, eq=False)
class LayerKernels:
    """The kernels of one layer, each taking the previous one's output; y = scale·z + bias for the integer result z.

    All but the last depend on the activation alone: layers that read the same tensor share them.
    """

    algorithm: Literal["popcount", "bitsliced"]
    stages: tuple[Kernel, ...]
    output: OutputMap
    #: The stages in place of the last one where bits are handed on: they give the reader's packed activation. None
    #: where the kernels cannot.
    bits_for: Callable[[Handover], tuple[Kernel, ...] | None] = lambda _handover: None
    #: For popcount convolutions: the product, then a chain, as a part of a fused kernel.
    fused_part: Callable[[Chain], FusedPart] | None = None
    #: For bit-sliced ones: the product, then a chain, in one kernel; its operands follow the product's constants.
    with_chain: Callable[[Chain], tirx.PrimFunc | None] | None = None

    @property
    def product(self) -> Kernel:
        """The kernel that holds the weights."""
        return self.stages[-1]

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Weights, thresholds, scales and tables: all that the layer needs besides its input."""
        return tuple(constant for kernel in self.stages for constant in kernel.constants)


@dataclass(frozen=True, eq=False)
class Handover:
    """The bits that a layer hands on: channel c gives [z >= bounds[c]], or the opposite where ``inverted[c]``.

    int64[O] and bool[O]. They go through ``pool``, a max-pool (or None), which joins the bits of a window by OR, or by
    AND where ``joined_by_and[c]``; then they are packed as ``reader``, and all that read alike, wants them.
    """

    reader: BinarySpec
    pool: ConvGeometry | None
    bounds: Array
    inverted: Array
    joined_by_and: Array


@dataclass(frozen=True, eq=False)
class OutputMap:
    """y = scale·z + bias, float32[O]; ``bias`` is None where it is 0 everywhere. ``exact``: see ``output_map``."""

    scale: Array
    bias: Array | None
    exact: bool

    @property
    def scaled(self) -> Array | None:
        """The scale as a kernel's argument: None where it is 1 everywhere."""
        return None if np.all(self.scale == 1) else self.scale

    @property
    def arguments(self) -> tuple[Array, ...]:
        """The constants that a kernel takes for it."""
        return tuple(array for array in (self.scaled, self.bias) if array is not None)


def zero_of(spec: BinarySpec) -> int | None:
    """What a code stands for where an activation is 0 (``zero`` of ``popcount``); None for bits and signs."""
    return spec.lattice.zero if spec.lattice else None


def needs_correction(spec: BinarySpec) -> bool:
    """Whether kernels must tell ONNX's zero padding from code 0; a ring that holds the code of 0 needs nothing."""
    return spec.is_zero_padded and (spec.lattice is None or spec.lattice.zero_code is None)


def largest_activation(spec: BinarySpec) -> int:
    """The largest magnitude of the integers that kernels see."""
    if spec.lattice is None:
        return 1
    step = 2 if spec.lattice.bipolar else 1
    return max(abs(step * code - spec.lattice.zero) for code in spec.lattice.codes)


def alphabet_of(spec: BinarySpec) -> Alphabet:
    """The alphabet that kernels see; any two values that are not opposites are {0, 1} behind an affine map."""
    if spec.predicate == "ternary":
        return "ternary"
    if spec.lattice is not None:
        return codes_alphabet(bipolar=spec.lattice.bipolar, bits=spec.lattice.bits)
    return "bipolar" if spec.low == -spec.high else "unsigned"


def output_map(spec: BinarySpec) -> OutputMap:
    """Scale and bias of the module's docstring.

    ``exact``: every partial sum of the float layer is an integer times a power of two, so nothing is rounded anywhere
    and results are equal bit for bit.
    """
    binary = spec.binary_weights
    post = np.ones(spec.out_channels) if spec.scale is None else spec.scale.astype(np.float64)
    bias = np.zeros(spec.out_channels) if spec.bias is None else spec.bias.astype(np.float64)
    unit, offset = _unit_and_offset(spec)
    if offset:
        kappa = 2.0 * binary.signs.reshape(spec.out_channels, -1).sum(axis=1) - spec.fan_in
        bias = bias + offset * binary.alpha * kappa * post
    scale = (unit * binary.alpha * post).astype(np.float32)
    unbiased = not np.any(bias)
    on_lattice = spec.lattice is None or spec.lattice.exact
    exact = binary.exact and on_lattice and unbiased and bool(np.all(np.abs(np.frexp(scale)[0]) == 0.5))
    return OutputMap(scale, None if unbiased else bias.astype(np.float32), exact)


def reach_of(spec: BinarySpec) -> float:
    """The largest magnitude of an activation in units of z."""
    unit, _ = _unit_and_offset(spec)
    return max(abs(spec.low), abs(spec.high)) / abs(unit)


def _unit_and_offset(spec: BinarySpec) -> tuple[float, float]:
    """a = offset + unit·x with the integers x that kernels see."""
    if spec.lattice is not None:
        return spec.lattice.unit, spec.lattice.offset
    if spec.low in (0.0, -spec.high):
        return spec.high, 0.0
    return spec.high - spec.low, spec.low


def pack_rule(spec: BinarySpec) -> tuple[PackRule, tuple[Array, ...]]:
    """How the float activation becomes bits, and the parameters that the rule asks for: [channels] each.

    The thresholds of codes are [thresholds, channels].
    """
    alphabet = alphabet_of(spec)
    codes = spec.lattice.codes if spec.lattice else ()
    thresholds = spec.threshold.reshape(len(codes) - 1 if codes else 1, -1).astype(np.float32)
    per_channel = thresholds.shape[1] > 1
    constants = tuple(float(threshold) for threshold in thresholds[:, 0])
    parameters: list[Array] = []
    if spec.direction is not None:
        # x·(±1) + 0 is exact, so the folded threshold stays exact.
        direction = spec.direction.reshape(-1).astype(np.float32)
        parameters += [direction, np.zeros_like(direction)]
    if per_channel:
        parameters.append(thresholds if codes else thresholds[0])
    rule = PackRule(
        predicate="gt" if alphabet == "ternary" else spec.predicate,  # type: ignore[arg-type]
        threshold="channel" if per_channel else constants if codes else constants[0],
        alphabet=alphabet,
        affine=spec.direction is not None,
        codes=codes,
    )
    return rule, tuple(parameters)


def ring_code(spec: BinarySpec) -> int:
    """What the padding ring of a packed activation holds: a bit or a code."""
    if spec.ring is None:
        zero_code = spec.lattice.zero_code if spec.lattice else None
        return 0 if zero_code is None else zero_code
    if spec.lattice is not None:
        return spec.lattice.codes[spec.levels.index(spec.ring)]
    return int(spec.ring == spec.high)


def pack_kernel(spec: BinarySpec, isa: Isa) -> Kernel:
    """The kernel from the float activation to channel-packed bits."""
    rule, parameters = pack_rule(spec)
    options: dict[str, Any] = {
        "predicate": rule.predicate,
        "threshold": rule.threshold,
        "alphabet": rule.alphabet,
        "affine": rule.affine,
        "codes": rule.codes,
        "isa": isa,
    }
    if spec.geometry is not None:
        function = pack_conv_activations(spec.geometry, pad_code=ring_code(spec), **options)
    else:
        function = pack_dense_activations(spec.rows, spec.fan_in, **options)
    return Kernel(function, parameters, packed_shape(spec), "uint64")


def packed_shape(spec: BinarySpec) -> tuple[int, ...]:
    """Shape of a layer's packed activation, uint64."""
    if spec.geometry is not None:
        return conv_bits_shape(spec.geometry, alphabet_of(spec))
    return dense_bits_shape(spec.rows, spec.fan_in, alphabet_of(spec))
