"""Bit-sliced convolution along a channel tree: counters start as their parent's, only differing weights are counted.

For every block of output pixels and every output channel the counter (``bitsliced_counting``) is un-sliced to numbers
U, and the result is

    y = float(f·U − (f/2)·V + offset)·scale + bias

with f = 4 for bipolar activations, 2 for the others, and V the sum of all planes of the group. The offset is −zero·κ,
κ the sum of the channel's weights inside the image and ``zero`` as in ``popcount`` (1 for bipolar activations): it
depends on the border class of the pixel when the convolution pads with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.bit_planes import BlockRun, PlaneLayout
from bnn_compiler.schedules.bit_unslice import make_unslicer
from bnn_compiler.schedules.bitsliced_counting import emit_counting, program_arguments
from bnn_compiler.schedules.bitsliced_epilogue import Epilogue
from bnn_compiler.schedules.bitsliced_sizes import make_sizes
from bnn_compiler.schedules.border_classes import border_classes, has_border_correction
from bnn_compiler.schedules.channel_program import ChannelProgram
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import Argument, Buffer, PrimFunc, build_kernel
from bnn_compiler.schedules.output_chain import Chain, chain_arguments
from bnn_compiler.schedules.popcount import OutDtype, default_zero

_TABLE_LANES = 16


def bitsliced_conv2d_constants(
    layout: PlaneLayout, signs: NDArray[np.bool_], *, zero_padded: bool, zero: int | None = None
) -> tuple[NDArray[np.int32], ...]:
    """Offsets int32 [O, classes] and, where there are several classes, the class of each pixel, int32 [pixels].

    ``signs`` bool [O, Cg, kh, kw] are True where the weight is +1; ``zero`` is that of ``popcount``.
    """
    zero = default_zero(layout.alphabet) if zero is None else zero
    if zero == 0:
        return (np.zeros((len(signs), 1), np.int32),)
    weights = zero * (2 * signs.astype(np.int32) - 1)
    offsets = -weights.reshape(len(signs), -1).sum(axis=1, dtype=np.int32).reshape(-1, 1)
    if not has_border_correction(layout.geometry, layout.alphabet, zero_padded, zero):
        return (offsets,)
    classes, outside = border_classes(layout.geometry)
    offsets = offsets + np.einsum("oihw,khw->ok", weights, outside.astype(np.int32)).astype(np.int32)
    padded = -(-offsets.shape[1] // _TABLE_LANES) * _TABLE_LANES
    table = np.zeros((len(signs), padded), np.int32)
    table[:, : offsets.shape[1]] = offsets
    pixels = np.zeros(layout.padded_pixels, np.int32)
    pixels[: layout.pixels] = np.tile(classes, layout.geometry.batch)
    return table, np.asarray(pixels, np.int32)


def bitsliced_conv2d(
    layout: PlaneLayout,
    program: ChannelProgram,
    constants: Sequence[NDArray[np.int32]],
    *,
    has_scale: bool,
    has_bias: bool,
    isa: Isa,
    out_dtype: OutDtype = "float32",
    name: str | None = None,
    chain: Chain = (),
) -> PrimFunc:
    """The kernel (planes, indices, nodes, first_rows, offsets, [pixel_class], [scale], [bias], operands) -> y.

    ``y`` [N, O, OH, OW] has passed ``chain``, whose operands are float32 [O] or of the shape of ``y``; only one image
    (N = 1) and a float32 result take one.

    ``planes`` come from ``make_bit_planes``; ``constants`` are those of ``bitsliced_conv2d_constants``. ``program`` and
    ``constants`` only give the sizes of the arguments. An int32 result takes neither scale nor bias.
    """
    if out_dtype == "int32" and (has_scale or has_bias):
        raise ValueError("an int32 result takes neither scale nor bias")
    geometry = layout.geometry
    if chain and (out_dtype == "int32" or geometry.batch > 1):
        raise ValueError("a chain takes the float32 result of one image")
    sizes = make_sizes(layout, program, constants, isa)
    arguments = [*program_arguments(layout, program), Argument("offsets", constants[0].shape, "int32")]
    if sizes.has_classes:
        arguments.append(Argument("pixel_class", constants[1].shape, "int32"))
    for present, parameter in ((has_scale, "scale"), (has_bias, "bias")):
        if present:
            arguments.append(Argument(parameter, (geometry.out_channels,), "float32"))
    shape = (geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width)
    arguments += [*chain_arguments(chain, shape), Argument("output", shape, out_dtype)]
    kernel_shape = "x".join(map(str, geometry.kernel))
    readable = f"bitsliced_conv2d_{kernel_shape}_{layout.alphabet}_{isa.name}"

    def epilogue_of(buffers: Mapping[str, Buffer], run: BlockRun) -> Epilogue:
        return Epilogue(sizes, buffers, run, make_unslicer(sizes.bits, run.lanes, isa), chain)

    return build_kernel(
        name or readable, readable, arguments, lambda buffers: emit_counting(sizes, buffers, epilogue_of)
    )
