"""Popcount convolution with what follows it: element-wise operators, a residual, and the next layer's packed bits.

Each register tile of results passes a chain of element-wise operators (``output_chain``) before it is stored; so a
residual is read once, and no other map is written or read. Where a binary layer reads the result, its bits are made
from the same registers (``bit_rule_emitter``) and gathered for its packed activation (``bit_gatherer``): as a second
result, or as the only one.

A kernel may have several parts: convolutions whose results lie side by side along the channels, as a concatenation
would put them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tvm import tirx

from bnn_compiler.schedules.bit_gatherer import BitGatherer, can_read_bits
from bnn_compiler.schedules.bit_pool import ActivationWriter
from bnn_compiler.schedules.bit_rule_emitter import BitRuleEmitter
from bnn_compiler.schedules.border_classes import has_border_correction
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    splat,
)
from bnn_compiler.schedules.output_chain import Chain, ChainEmitter, chain_arguments
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import HALF_BITS, Alphabet, default_zero, has_offset_per_channel, store_leading
from bnn_compiler.schedules.popcount_conv import product_arguments
from bnn_compiler.schedules.popcount_conv_emitter import ConvEmitter, emit_images
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan, conv_bits_shape

_RULE_PREFIX = "reader_"


@dataclass(frozen=True)
class FusedPart:
    """One convolution, as ``popcount_conv2d`` takes it, and the chain behind it."""

    geometry: ConvGeometry
    alphabet: Alphabet
    zero_padded: bool
    has_scale: bool
    has_bias: bool
    chain: Chain = ()
    zero: int | None = None

    def plan(self, isa: Isa) -> PopcountPlan:
        """The sizes of the convolution's loops."""
        zero = default_zero(self.alphabet) if self.zero is None else self.zero
        has_table = has_border_correction(self.geometry, self.alphabet, self.zero_padded, zero)
        return PopcountPlan(self.geometry, self.alphabet, has_table, has_offset_per_channel(self.alphabet, zero), isa)


@dataclass(frozen=True)
class BitReader:
    """A convolution that reads the results as bits: how it packs float32 activations, and its padding ring's code."""

    geometry: ConvGeometry
    rule: PackRule
    pad_code: int


def output_shape(parts: Sequence[FusedPart]) -> tuple[int, int, int, int]:
    """Shape [N, C, H, W] of the parts' results side by side.

    Raises:
        ValueError: the parts differ in more than their channels.
    """
    shapes = {(g.batch, g.out_height, g.out_width) for g in (part.geometry for part in parts)}
    if len(shapes) != 1:
        raise ValueError(f"results of different sizes have no place side by side: {sorted(shapes)}")
    ((batch, height, width),) = shapes
    return batch, sum(part.geometry.out_channels for part in parts), height, width


def popcount_conv2d_fused(
    parts: Sequence[FusedPart], *, reader: BitReader | None, gives_floats: bool, isa: Isa
) -> PrimFunc:
    """The kernel (per part: bits, constants, operands …; parameters of the rule …) -> [y], [reader's packed bits].

    ``bits`` and constants are those of ``popcount_conv2d``; the operands, in the order of the chain, have the part's
    channels: float32 [C] or [N, C, H, W]. ``y`` float32 [N, ΣC, H, W] is there where ``gives_floats``, and uint64 of
    ``conv_bits_shape`` where there is a ``reader``.

    Raises:
        ValueError: nothing is given, the parts do not fit each other, or the reader does not take their results.
    """
    shape = output_shape(parts)
    if reader is not None:
        read = reader.geometry
        if shape != (read.batch, read.in_channels, read.height, read.width) or not can_read_bits(read):
            raise ValueError(f"bits of an output {shape} do not fit a convolution of {read}")
    elif not gives_floats:
        raise ValueError("the kernel would have no result")
    plans = [part.plan(isa) for part in parts]
    arguments = []
    for i, (part, plan) in enumerate(zip(parts, plans, strict=True)):
        own_shape = (shape[0], part.geometry.out_channels, *shape[2:])
        own = product_arguments(plan, has_scale=part.has_scale, has_bias=part.has_bias)
        own += chain_arguments(part.chain, own_shape)
        arguments += [replace(argument, name=_prefix(i) + argument.name) for argument in own]
    if reader is not None:
        parameters = reader.rule.parameters(shape[1])
        arguments += [replace(argument, name=_RULE_PREFIX + argument.name) for argument in parameters]
    if gives_floats:
        arguments.append(Argument("output", shape, "float32"))
    if reader is not None:
        arguments.append(Argument("packed", conv_bits_shape(reader.geometry, reader.rule.alphabet), "uint64"))
    kernel_shape = "x".join(map(str, parts[0].geometry.kernel))
    results = "_and_".join(["floats"] * gives_floats + ["bits"] * (reader is not None))
    name = f"popcount_conv2d_{kernel_shape}_{parts[0].alphabet}_to_{results}_{isa.name}"
    return build_kernel(
        name,
        name,
        arguments,
        lambda buffers: emit_images(plans, lambda: _PartsEmitter(parts, plans, reader, shape, buffers)),
    )


def _prefix(part: int) -> str:
    return f"part{part}_"


class _PartsEmitter:
    """All parts, one after the other."""

    def __init__(
        self,
        parts: Sequence[FusedPart],
        plans: Sequence[PopcountPlan],
        reader: BitReader | None,
        shape: tuple[int, int, int, int],
        buffers: Mapping[str, Buffer],
    ) -> None:
        self.sink = None if reader is None else _BitSink(reader, shape[1], plans[0], buffers)
        self.parts, first_channel = [], 0
        for i, (part, plan) in enumerate(zip(parts, plans, strict=True)):
            prefix = _prefix(i)
            own = {name.removeprefix(prefix): buffer for name, buffer in buffers.items() if name.startswith(prefix)}
            output = buffers.get("output")
            self.parts.append(_PartEmitter(part.chain, plan, own, output, self.sink, first_channel, shape[1]))
            first_channel += part.geometry.out_channels

    def emit_image(self, image: Expr) -> None:
        """The parts' results, then their bits."""
        if self.sink is not None:
            self.sink.bits.clear()
        for part in self.parts:
            part.emit_image(image)
        if self.sink is not None:
            self.sink.bits.finish(image)


class _BitSink:
    """The bits of one image's results, for the reader."""

    def __init__(self, reader: BitReader, channels: int, plan: PopcountPlan, buffers: Mapping[str, Buffer]) -> None:
        rule, geometry = reader.rule, reader.geometry
        self.rule = BitRuleEmitter(rule, channels, plan.isa, buffers, row_parameters=True, prefix=_RULE_PREFIX)
        writer = ActivationWriter(geometry, None, {})
        self.bits = BitGatherer(
            geometry, rule.alphabet, reader.pad_code, buffers["packed"], writer, plan.pixels, plan.unit.lanes
        )


class _PartEmitter(ConvEmitter):
    """One part: its channels are ``first_channel`` … of ``all_channels`` in the output."""

    def __init__(
        self,
        chain: Chain,
        plan: PopcountPlan,
        buffers: Mapping[str, Buffer],
        output: Buffer | None,
        sink: _BitSink | None,
        first_channel: int,
        all_channels: int,
    ) -> None:
        super().__init__(plan, buffers)
        self.chain = ChainEmitter(chain, buffers)
        self.output = output
        self.sink = sink
        self.first_output = first_channel
        self.all_channels = all_channels

    def results(
        self, image: Expr, first_channel: Expr, rows: list[list[tuple[int, Expr, int]]], first_pixel: Expr, valid: int
    ) -> None:
        """Apply the chain; store floats, set bits."""
        plan, sink = self.plan, self.sink
        tile_channels = self.tile_shape[1]
        # Where tiles of channels do not cross a half word, its bits are gathered in registers.
        aligned = (HALF_BITS, plan.geometry.group_out_channels, self.first_output)
        together = all(channels % tile_channels == 0 for channels in aligned)
        gathered: dict[tuple[int, int], Expr] = {}
        for j, row in enumerate(rows):
            channel = first_channel + j
            target = bind(channel + self.first_output)
            parameters, chain_parameters = self.parameters(channel), self.chain.parameters(channel)
            operand = bind((image * plan.geometry.out_channels + channel) * plan.pixels + first_pixel)
            output = bind((image * self.all_channels + target) * plan.pixels + first_pixel)
            bit = bind(tirx.const(1, "uint32") << (target % HALF_BITS).astype("uint32"))
            for start, disagreements, width in row:
                leading = self.leading(width, valid)
                y = self.value(disagreements, channel, parameters, first_pixel + start, width)
                y = bind(self.chain.apply(y, chain_parameters, operand + start, width, leading))
                if self.output is not None:
                    store_leading(self.output, output + start, y, leading, width, self.spill)
                if sink is None:
                    continue
                none = constant(0, "uint32", width)
                for plane, found in enumerate(sink.rule.bits(y, width, target, splat(bit, width), none)):
                    before = gathered.get((plane, start)) if together else None
                    bits = bind(found if before is None else before | found)
                    gathered[plane, start] = bits
                    if not together or j == len(rows) - 1:
                        sink.bits.set_bits(sink.bits.row(target, first_pixel, plane) + start, bits, width)
