"""A 3-D convolution becomes a 2-D one over images whose channels are (channel, depth tap) pairs.

For output depth o, the taps of the kernel along depth read the input depths o·s + k·d − p, k = 0 … kd − 1. Gathered
beside the channels, they make one image per (batch, o):

    [N, C, D, H, W] -> take over depth -> [N, C, Do·kd, H, W] -> [N·Do, C·kd, H, W] -> conv2d with [O, C·kd, kh, kw]

The weight is the same array read in another shape, and groups stay together, because a channel's taps are neighbours.

Padding along depth is a frame of zeros. A bit has no zero, so where the layer is binary (activations ±a, weights ±α)
the frames hold +a, and what they add to the result, a constant of its output position, is subtracted: integers times
a·α, exact where those are powers of two.

Conditions: (1) ``nn.conv3d`` in NCDHW/OIDHW with static shapes and floating-point data; (2) a constant weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bnn_compiler.constants import Array, dtype_of, op_name, static_shape
from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.recognition.value_sets import ValueSet, ValueSetAnalysis

from .rewrite_products import Names, move_name, rewrite_products


@tvm.transform.module_pass(opt_level=0, name="FlattenConv3d")
class FlattenConv3d:
    """Rewrite 3-D convolutions as 2-D ones; see the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to ``main``, and give the names of a rewritten convolution to what takes its place."""
        return rewrite_products(module, _is_conv3d, _Flattener)


@relax.expr_functor.mutator
class _Flattener(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, analysis: ValueSetAnalysis, names: Names) -> None:
        super().__init__(module)
        self._analysis = analysis
        self._names = names

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Rewrite one convolution, or copy the binding."""
        call = binding.value
        weights = self._analysis.constants.value(call.args[1]) if _is_conv3d(call) else None
        if weights is None or not _is_supported(call):
            super().visit_var_binding_(binding)
            return
        result = self._flatten(call, weights, str(binding.var.name))
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(result, binding.var.name))

    def _flatten(self, call: Call, weights: Array, name: str) -> Any:
        strides, dilations, pads = (
            [int(size) for size in sizes] for sizes in (call.attrs.strides, call.attrs.dilation, call.attrs.padding)
        )
        batch, channels, depth, height, width = static_shape(call.args[0]) or ()
        out_channels, _, taps = weights.shape[:3]
        _, _, out_depth, out_height, out_width = static_shape(call) or ()
        fill = _frame_value(self._analysis.of(call.args[0]), weights) if pads[0] or pads[3] else 0.0
        data = self.visit_expr(call.args[0])

        def emit(expr: relax.Expr, part: str) -> Any:
            # Named here: the builder's own names may be those of other variables, which the map of names speaks of.
            return self.builder_.emit(expr, f"{name}_{part}")

        if pads[0] or pads[3]:
            widths = [0, 0, 0, 0, pads[0], pads[3], 0, 0, 0, 0]
            data = emit(relax.op.nn.pad(data, widths, "constant", fill), "frames")
        read = np.arange(out_depth)[:, None] * strides[0] + np.arange(taps) * dilations[0]
        if not np.array_equal(read.reshape(-1), np.arange(depth + pads[0] + pads[3])):
            indices = relax.const(read.reshape(-1).astype(np.int64), "int64")
            data = emit(relax.op.take(data, indices, axis=2, mode="clip"), "taken")
        data = emit(relax.op.reshape(data, (batch, channels, out_depth, taps, height, width)), "taps")
        data = emit(relax.op.permute_dims(data, [0, 2, 1, 3, 4, 5]), "by_depth")
        data = emit(relax.op.reshape(data, (batch * out_depth, channels * taps, height, width)), "images")
        kernel = weights.reshape(out_channels, -1, *weights.shape[3:])
        product = emit(
            relax.op.nn.conv2d(
                data,
                relax.const(np.ascontiguousarray(kernel), str(kernel.dtype)),
                strides=strides[1:],
                padding=[pads[1], pads[2], pads[4], pads[5]],
                dilation=dilations[1:],
                groups=int(call.attrs.groups),
            ),
            "conv2d",
        )
        move_name(self._names, name, product)
        result = emit(relax.op.reshape(product, (batch, out_depth, out_channels, out_height, out_width)), "stacked")
        result = relax.op.permute_dims(result, [0, 2, 1, 3, 4])
        if not fill:
            return result
        outside = (read < pads[0]) | (read >= pads[0] + depth)
        excess = _frame_excess(weights, outside, (height, width), (out_height, out_width), strides, dilations, pads)
        constant = relax.const((fill * excess).astype(weights.dtype), str(weights.dtype))
        return relax.op.subtract(emit(result, "framed"), constant)


def _is_conv3d(value: relax.Expr) -> bool:
    return op_name(value) == "relax.nn.conv3d"


def _is_supported(call: Call) -> bool:
    """Condition 1."""
    layouts = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    known = static_shape(call) is not None and static_shape(call.args[0]) is not None
    return known and layouts == ("NCDHW", "OIDHW") and dtype_of(call).startswith("float")


def _frame_value(known: ValueSet | None, weights: Array) -> float:
    """+a for a binary layer, else 0."""
    if known is None or not isinstance(analyse_weights(weights), BinaryWeights):
        return 0.0
    values = sorted(known.values)
    return values[-1] if len(values) == 2 and values[0] == -values[-1] else 0.0


def _frame_excess(
    weights: Array,
    outside: Array,
    extent: tuple[int, int],
    out_extent: tuple[int, int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
) -> Array:
    """float64[1, O, Do, Ho, Wo]: the convolution of frames of ones where ``outside`` (Do, kd) and zeros elsewhere."""
    per_tap = weights.astype(np.float64).sum(axis=1)  # [O, kd, kh, kw]
    image = np.pad(np.ones(extent), [(pads[1], pads[4]), (pads[2], pads[5])])
    response = np.zeros((*per_tap.shape[:2], *out_extent))
    for y in range(per_tap.shape[2]):
        for x in range(per_tap.shape[3]):
            top, left = y * dilations[1], x * dilations[2]
            rows = image[top : top + (out_extent[0] - 1) * strides[1] + 1 : strides[1]]
            seen = rows[:, left : left + (out_extent[1] - 1) * strides[2] + 1 : strides[2]]
            response += per_tap[:, :, y, x, None, None] * seen
    return np.asarray(np.einsum("dk,okhw->odhw", outside.astype(np.float64), response)[None])
