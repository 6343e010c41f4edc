"""Channel-packed XNOR-popcount convolution.

Bits arrive as uint64 [N, G, W, H + pads, W + pads] with W = planes·ceil(Cg/64) words per pixel. Per image, group and
band of output rows the kernel

1. gathers a bit-level im2col, ``columns[k][pixel]`` with k = (word, ky, kx), in a workspace that fits the L2 cache,
2. multiplies it with the weights, uint64 [O, K]: vectors run over adjacent output pixels, weight words are broadcast,
   so results are contiguous in NCHW, and a tile's columns stay in the L1 cache for all channels,
3. turns counts into z, and z into float(z)·scale + bias, in registers.

The only trace of zero padding under {-1,+1} is the offset in z: the padding ring holds 0 bits, which count as -1, so
z gains w for each tap outside the image. That sum depends on the channel and on which taps are outside: the pixel's
*border class* (9 classes for a 3x3 kernel with pad 1), looked up in a table of int32 per channel. The same holds for
any code whose 0 is not the activation 0 (``zero`` of ``popcount``), with zero·w for each tap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.border_classes import border_classes, has_border_correction
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    PrimFunc,
    build_kernel,
)
from bnn_compiler.schedules.pack_weights import interleaved, pack_conv_weights
from bnn_compiler.schedules.popcount import (
    Alphabet,
    OutDtype,
    channel_offsets,
    default_zero,
    has_offset_per_channel,
)
from bnn_compiler.schedules.popcount_conv_emitter import ConvEmitter, emit_images
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan, conv_bits_shape, padded_classes


def popcount_conv2d_constants(
    geometry: ConvGeometry,
    signs: NDArray[np.bool_],
    *,
    alphabet: Alphabet,
    zero_padded: bool,
    isa: Isa,
    zero: int | None = None,
) -> tuple[NDArray[np.generic], ...]:
    """The arguments of ``popcount_conv2d`` between bits and scale, from the weights' signs bool [O, Cg, kh, kw].

    They are weights uint64 of ``PopcountPlan.weights_shape``, then offsets int32 [O, classes] (where z's offset is not
    the same constant for all channels), then the border class of each pixel, int32 [OH·OW] or longer (where there is a
    border correction).
    """
    zero = default_zero(alphabet) if zero is None else zero
    plan = PopcountPlan(geometry, alphabet, False, False, isa)
    weights = pack_conv_weights(signs, alphabet)
    if plan.channels_in_lanes:
        weights = interleaved(weights, plan.unit.lanes)
    constant_part = channel_offsets(signs, alphabet, zero).reshape(-1, 1)
    if not has_border_correction(geometry, alphabet, zero_padded, zero):
        return (weights, constant_part) if has_offset_per_channel(alphabet, zero) else (weights,)
    pixel_class, outside = border_classes(geometry)
    tap_sums = 2 * signs.sum(axis=1, dtype=np.int32) - np.int32(signs.shape[1])
    corrections = tap_sums.reshape(len(signs), -1) @ outside.reshape(len(outside), -1).T.astype(np.int32)
    offsets = np.zeros((len(signs), padded_classes(len(outside))), np.int32)
    offsets[:, : len(outside)] = np.int32(zero) * corrections + constant_part
    return weights, offsets, np.pad(pixel_class, (0, plan.class_entries - plan.pixels), mode="edge")


def popcount_conv2d(
    geometry: ConvGeometry,
    *,
    alphabet: Alphabet,
    zero_padded: bool,
    has_scale: bool,
    has_bias: bool,
    isa: Isa,
    out_dtype: OutDtype = "float32",
    zero: int | None = None,
) -> PrimFunc:
    """The kernel (bits, weights, [offsets, [pixel_class]], [scale f32 [O]], [bias f32 [O]]) -> y [N, O, OH, OW].

    ``zero_padded`` says that the padding ring means 0 (its bits must be 0), else the ring's bits are activations.
    ``zero`` is what c·code is where an activation is 0 (see ``popcount``); None for the alphabet's own.
    ``popcount_conv2d_constants`` gives the arguments behind ``bits``. An int32 result takes neither scale nor bias.
    """
    if out_dtype == "int32" and (has_scale or has_bias):
        raise ValueError("an int32 result takes neither scale nor bias")
    zero = default_zero(alphabet) if zero is None else zero
    has_table = has_border_correction(geometry, alphabet, zero_padded, zero)
    plan = PopcountPlan(geometry, alphabet, has_table, has_offset_per_channel(alphabet, zero), isa)
    arguments = product_arguments(plan, has_scale=has_scale, has_bias=has_bias)
    shape = (geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width)
    arguments.append(Argument("output", shape, out_dtype))
    kernel_shape = "x".join(map(str, geometry.kernel))
    name = f"popcount_conv2d_{kernel_shape}_{alphabet}_{isa.name}"
    return build_kernel(
        name, name, arguments, lambda buffers: emit_images([plan], lambda: ConvEmitter(plan, buffers, out_dtype))
    )


def product_arguments(plan: PopcountPlan, *, has_scale: bool, has_bias: bool) -> list[Argument]:
    """The arguments of ``popcount_conv2d``, without its output."""
    channels = (plan.geometry.out_channels,)
    arguments = [
        Argument("bits", conv_bits_shape(plan.geometry, plan.alphabet), "uint64"),
        Argument("weights", plan.weights_shape, "uint64"),
    ]
    if plan.has_table or plan.offset_per_channel:
        arguments.append(Argument("offsets", (*channels, plan.classes), "int32"))
    if plan.has_table:
        arguments.append(Argument("pixel_class", (plan.class_entries,), "int32"))
    parameters = (("scale", has_scale), ("bias", has_bias))
    return [*arguments, *(Argument(name, channels, "float32") for name, is_there in parameters if is_there)]
