"""From the counts of a popcount convolution to its results, in vectors of adjacent pixels of one channel."""

from __future__ import annotations

from collections.abc import Mapping

from bnn_compiler.schedules.intrinsics import has_avx512, lookup_int32
from bnn_compiler.schedules.kernel_builder import Buffer, Expr, bind, constant, join, load, register, splat
from bnn_compiler.schedules.popcount import OutDtype, common_offset, float_result, integer_result, store_leading
from bnn_compiler.schedules.popcount_conv_plan import TABLE_ALIGN, PopcountPlan


class ConvResults:
    """Stores z, or float(z)·scale + bias; kernels with other results override ``results``."""

    spill: Buffer

    def __init__(self, plan: PopcountPlan, buffers: Mapping[str, Buffer], out_dtype: OutDtype = "float32") -> None:
        self.plan = plan
        self.unit = plan.unit
        self.buffers = buffers
        self.out_dtype = out_dtype

    def make_spill(self) -> None:
        """The register that partly real vectors pass; each thread has its own."""
        self.spill = register(self.unit.lanes, self.out_dtype)

    def results(
        self, image: Expr, first_channel: Expr, rows: list[list[tuple[int, Expr, int]]], first_pixel: Expr, valid: int
    ) -> None:
        """Store the results of adjacent channels: per channel spans of (offset from the first pixel, P, pixels)."""
        plan = self.plan
        for j, row in enumerate(rows):
            channel = first_channel + j
            parameters = self.parameters(channel)
            output = bind((image * plan.geometry.out_channels + channel) * plan.pixels + first_pixel)
            for start, disagreements, width in row:
                y = self.value(disagreements, channel, parameters, first_pixel + start, width)
                store_leading(self.buffers["output"], output + start, y, self.leading(width, valid), width, self.spill)

    def leading(self, width: int, valid: int) -> int:
        """How many of ``width`` pixels exist: either every vector is whole, or there is one, and partly real."""
        return valid if valid < self.unit.lanes else width

    def parameters(self, channel: Expr) -> list[Expr | None]:
        """Scale and bias of a channel, where there are any."""
        return [bind(load(self.buffers[name], channel)) if name in self.buffers else None for name in ("scale", "bias")]

    def value(self, disagreements: Expr, channel: Expr, parameters: list[Expr | None], pixel: Expr, width: int) -> Expr:
        """z of ``width`` adjacent pixels of a channel, or float(z)·scale + bias."""
        plan = self.plan
        z = integer_result(disagreements, self.offset(channel, pixel, width), plan.alphabet, width)
        if self.out_dtype == "int32":
            return z
        scale, bias = (None if value is None else splat(value, width) for value in parameters)
        return float_result(z, scale, bias, width, plan.isa)

    def offset(self, channel: Expr, pixel: Expr, lanes: int) -> Expr:
        """The offset in z of ``lanes`` adjacent pixels of a channel, int32 x lanes; any where there is no pixel."""
        plan = self.plan
        if not plan.has_table:
            if plan.offset_per_channel:
                return splat(load(self.buffers["offsets"], channel), lanes)
            geometry = plan.geometry
            weights = geometry.group_in_channels * geometry.kernel[0] * geometry.kernel[1]
            return constant(common_offset(plan.alphabet, weights), "int32", lanes)
        table = channel * plan.classes
        offsets = self.buffers["offsets"]
        if has_avx512(plan.isa) and plan.classes <= 4 * TABLE_ALIGN:
            entries = [load(offsets, table + start, lanes) for start in range(0, plan.classes, lanes)]
            return lookup_int32(entries, load(self.buffers["pixel_class"], pixel, lanes), lanes)
        return _gather(offsets, table, [load(self.buffers["pixel_class"], pixel + lane) for lane in range(lanes)])


def _gather(table: Buffer, start: Expr, indices: list[Expr]) -> Expr:
    return join([load(table, start + index) for index in indices])
