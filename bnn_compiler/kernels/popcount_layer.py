"""The popcount kernels of a layer: channels are packed into words, and words counted."""

from __future__ import annotations

from typing import Any

from bnn_compiler.kernels.layer_kernels import (
    PARTS_ATTR,
    Handover,
    Kernel,
    LayerKernels,
    alphabet_of,
    needs_correction,
    output_map,
    pack_kernel,
    packed_shape,
    ring_code,
    zero_of,
)
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.bit_gatherer import can_read_bits
from bnn_compiler.schedules.bit_pool import pool_masks
from bnn_compiler.schedules.feature_bits import flat_reader
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.output_chain import Chain
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_bits import popcount_conv2d_bits, popcount_conv2d_bits_constants
from bnn_compiler.schedules.popcount_conv_fused import FusedPart
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants
from bnn_compiler.schedules.popcount_dense_bits import popcount_dense_bits, popcount_dense_bits_constants


def popcount_kernels(spec: BinarySpec, isa: Isa) -> LayerKernels:
    """Build the popcount kernels of a layer for one instruction set."""
    signs = spec.binary_weights.signs
    mapped = output_map(spec)
    codes: dict[str, Any] = {"alphabet": alphabet_of(spec), "zero": zero_of(spec)}
    epilogue: dict[str, Any] = {"has_scale": mapped.scaled is not None, "has_bias": mapped.bias is not None}
    if spec.geometry is not None:
        codes["zero_padded"] = needs_correction(spec)
        function = popcount_conv2d(spec.geometry, isa=isa, **codes, **epilogue)
        constants = popcount_conv2d_constants(spec.geometry, signs, isa=isa, **codes)
    else:
        function = popcount_dense(spec.rows, spec.fan_in, spec.out_channels, isa=isa, **codes, **epilogue)
        constants = popcount_dense_constants(signs, **codes)
    product = Kernel(function, (*constants, *mapped.arguments), spec.output_shape, "float32")

    def bits_for(handover: Handover) -> tuple[Kernel, ...] | None:
        reader = handover.reader
        thresholds: tuple[Any, ...] = (constants, handover.bounds, handover.inverted)
        if spec.geometry is None:
            if reader.geometry is not None:
                return None
            options: dict[str, Any] = {"alphabet": codes["alphabet"]}
            bounds = popcount_dense_bits_constants(spec.fan_in, *thresholds, **options)
            count = popcount_dense_bits(spec.rows, spec.fan_in, spec.out_channels, isa=isa, **options)
        else:
            last, read = handover.pool or spec.geometry, reader.geometry
            if read is None and (last.out_height, last.out_width) != (1, 1):
                return None
            if read is not None and not can_read_bits(read):
                return None
            bounds = popcount_conv2d_bits_constants(spec.geometry, *thresholds, alphabet=codes["alphabet"])
            masks = pool_masks(read or flat_reader(last), handover.joined_by_and)
            options = {
                "pad_bit": 0 if read is None else ring_code(reader),
                "pool": handover.pool,
                "masked": bool(masks),
            }
            count = popcount_conv2d_bits(spec.geometry, read, isa=isa, **options, **codes)
            bounds = (*bounds, *masks)
        return (Kernel(count.with_attr(PARTS_ATTR, [0, 1]), bounds, packed_shape(reader), "uint64"),)

    geometry = spec.geometry
    if geometry is None:
        return LayerKernels("popcount", (pack_kernel(spec, isa), product), mapped, bits_for)

    def fused_part(chain: Chain) -> FusedPart:
        return FusedPart(geometry, chain=chain, **codes, **epilogue)

    return LayerKernels("popcount", (pack_kernel(spec, isa), product), mapped, bits_for, fused_part)
