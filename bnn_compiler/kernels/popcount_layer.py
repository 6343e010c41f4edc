"""The popcount kernels of a layer: channels are packed into words, and words counted."""

from __future__ import annotations

from typing import Any

from bnn_compiler.kernels.bit_thresholds import bit_thresholds
from bnn_compiler.kernels.layer_kernels import (
    GIVES_BITS_ATTR,
    Kernel,
    LayerKernels,
    alphabet_of,
    largest_activation,
    needs_correction,
    output_map,
    pack_kernel,
    ring_code,
    zero_of,
)
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_bits import (
    can_read_bits,
    popcount_conv2d_bits,
    popcount_conv2d_bits_constants,
)
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants


def popcount_kernels(spec: BinarySpec, isa: Isa) -> LayerKernels:
    """Build the popcount kernels of a layer for one instruction set."""
    signs = spec.binary_weights.signs
    alphabet = alphabet_of(spec)
    zero = zero_of(spec)
    mapped = output_map(spec)
    has_scale, has_bias = mapped.scaled is not None, mapped.bias is not None
    if spec.geometry is not None:
        zero_padded = needs_correction(spec)
        function = popcount_conv2d(
            spec.geometry,
            alphabet=alphabet,
            zero_padded=zero_padded,
            has_scale=has_scale,
            has_bias=has_bias,
            isa=isa,
            zero=zero,
        )
        constants = popcount_conv2d_constants(
            spec.geometry, signs, alphabet=alphabet, zero_padded=zero_padded, zero=zero
        )
    else:
        function = popcount_dense(
            spec.rows,
            spec.fan_in,
            spec.out_channels,
            alphabet=alphabet,
            has_scale=has_scale,
            has_bias=has_bias,
            isa=isa,
            zero=zero,
        )
        constants = popcount_dense_constants(signs, alphabet=alphabet, zero=zero)
    product = Kernel(function, (*constants, *mapped.arguments), spec.output_shape, "float32")

    def bits_for(reader: BinarySpec) -> tuple[Kernel, ...] | None:
        geometry, read = spec.geometry, reader.geometry
        if geometry is None or read is None or not can_read_bits(read):
            return None
        found = bit_thresholds(mapped, spec.fan_in * largest_activation(spec), reader, fused=isa.fused_multiply_add)
        if found is None:
            return None
        options: dict[str, Any] = {"alphabet": alphabet, "zero_padded": needs_correction(spec), "zero": zero}
        bounds = popcount_conv2d_bits_constants(geometry, signs, found.bounds, found.inverted, **options)
        count = popcount_conv2d_bits(geometry, read, pad_bit=ring_code(reader), isa=isa, **options)
        shape = conv_bits_shape(read, alphabet_of(reader))
        # The weights are those of the kernel that gives floats.
        counted = Kernel(count.with_attr(GIVES_BITS_ATTR, 1), (constants[0], *bounds[1:]), shape, "uint64")
        return (counted,)

    return LayerKernels("popcount", (pack_kernel(spec, isa), product), mapped, bits_for)
