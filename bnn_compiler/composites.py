"""One binary layer in canonical form, as a composite function and as data.

A composite (attribute ``Composite`` = ``bnnc.binary_conv2d`` or ``bnnc.binary_dense``) is a Relax function that carries
the layer's own float semantics, so an unlowered module still runs:

    x                                     any float32 tensor
    m = reshape | permute_dims of x       zero or more: bring x to [N, C, H, W] (conv) or [M, K] (dense)
    d = multiply(m, direction)            optional, ±1 per channel
    c = compare(d, threshold)             optionally logical_not(c), which also holds for NaN
    a = where(c, high, low)               or, ternary, where(m > 0, high, where(m < 0, low, 0)); or, several levels,
                                          where(c_L, v_L, … where(c_1, v_1, v_0)) with a comparison for each threshold
    p = nn.pad(a, widths, ring)           optional, ring is low or high; ONNX zero padding stays in the convolution
    y = nn.conv2d(p, w) | matmul(p, w)
    s = multiply(y, scale)                optional, per output channel
    b = add(s, bias)                      optional, per output channel
    o = reshape | permute_dims of b       zero or more

``build_composite`` writes that function and ``read_composite`` reads it back; the function is the only source of truth,
its attribute ``bnnc.layer`` holds names for people, and ``bnnc.rounded`` whether the model's own activations are low
and high up to rounding only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bnn_compiler.constants import Array, ConstantEvaluator, op_name, static_shape
from bnn_compiler.layers import BinarySpec, LayerNames, Move
from bnn_compiler.schedules.geometry import ConvGeometry

CONV_COMPOSITE = "bnnc.binary_conv2d"
DENSE_COMPOSITE = "bnnc.binary_dense"
_COMPARE = {"ge": "greater_equal", "gt": "greater", "le": "less_equal", "lt": "less", "eq": "equal", "ne": "not_equal"}
_NEGATED = {"nlt": "lt", "nle": "le", "ngt": "gt", "nge": "ge"}


def build_composite(spec: BinarySpec, names: LayerNames) -> relax.Function:
    """The canonical composite of ``spec``; private, float32 in and out."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(spec.input_shape, "float32"))
    attrs = {
        "Composite": CONV_COMPOSITE if spec.geometry else DENSE_COMPOSITE,
        "bnnc.layer": json.dumps(names.__dict__),
        "bnnc.rounded": spec.rounded,
    }
    with builder.function("layer", [x], attrs=attrs, private=True):
        with builder.dataflow():
            value = apply_moves(builder, x, spec.prefix)
            value = _emit_binarize(builder, value, spec)
            value = _emit_product(builder, value, spec)
            shape = (-1, 1, 1) if spec.geometry else (-1,)
            if spec.scale is not None:
                value = builder.emit(relax.op.multiply(value, relax.const(spec.scale.reshape(shape))))
            if spec.bias is not None:
                value = builder.emit(relax.op.add(value, relax.const(spec.bias.reshape(shape))))
            output = builder.emit_output(apply_moves(builder, value, spec.suffix))
        builder.emit_func_output(output)
    return builder.get()["layer"]


def apply_moves(builder: relax.BlockBuilder, value: relax.Expr, moves: Sequence[Move]) -> relax.Expr:
    """Emit ``moves`` on ``value``."""
    for kind, arguments in moves:
        operation = relax.op.reshape if kind == "reshape" else relax.op.permute_dims
        value = builder.emit(operation(value, list(arguments)))
    return value


def _emit_binarize(builder: relax.BlockBuilder, value: relax.Expr, spec: BinarySpec) -> relax.Expr:
    op = relax.op
    low, high = relax.const(np.float32(spec.low)), relax.const(np.float32(spec.high))
    zero = relax.const(np.float32(0))
    if spec.predicate == "ternary":
        negative = builder.emit(op.where(builder.emit(op.less(value, zero)), low, zero))
        return builder.emit(op.where(builder.emit(op.greater(value, zero)), high, negative))
    if spec.direction is not None:
        value = builder.emit(op.multiply(value, relax.const(spec.direction)))
    if not spec.levels:
        return builder.emit(op.where(_emit_condition(builder, value, spec.predicate, spec.threshold), high, low))
    result = relax.const(np.float32(spec.levels[0]))
    for level, threshold in zip(spec.levels[1:], spec.threshold, strict=True):
        condition = _emit_condition(builder, value, spec.predicate, np.asarray(threshold))
        result = builder.emit(op.where(condition, relax.const(np.float32(level)), result))
    return result


def _emit_condition(builder: relax.BlockBuilder, value: relax.Expr, predicate: str, threshold: Array) -> relax.Expr:
    compare = getattr(relax.op, _COMPARE[_NEGATED.get(predicate, predicate)])
    condition = builder.emit(compare(value, relax.const(threshold)))
    return builder.emit(relax.op.logical_not(condition)) if predicate in _NEGATED else condition


def _emit_product(builder: relax.BlockBuilder, value: relax.Expr, spec: BinarySpec) -> relax.Expr:
    weights = relax.const(spec.weights)
    if spec.geometry is None:
        return builder.emit(relax.op.matmul(value, weights))
    top, left, bottom, right = spec.geometry.pads
    pads = [top, left, bottom, right]
    if spec.ring is not None:
        widths = [0, 0, 0, 0, top, bottom, left, right]
        value = builder.emit(relax.op.nn.pad(value, widths, "constant", spec.ring))
        pads = [0, 0, 0, 0]
    return builder.emit(
        relax.op.nn.conv2d(
            value,
            weights,
            strides=list(spec.geometry.strides),
            padding=pads,
            dilation=list(spec.geometry.dilations),
            groups=spec.geometry.groups,
        )
    )


def composite_names(function: relax.Function) -> LayerNames:
    """The names that ``build_composite`` stored."""
    stored = json.loads(str(function.attrs["bnnc.layer"]))
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return LayerNames(**{**stored, **lists})


def read_composite(function: relax.Function) -> BinarySpec:
    """Read the canonical form back; an ``AssertionError`` means that something else wrote the composite."""
    bindings = {binding.var: binding.value for block in function.body.blocks for binding in block.bindings}
    constants = ConstantEvaluator(bindings)
    chain = _linear_chain(function)
    names = [op_name(call) for call in chain]
    product = next(i for i, name in enumerate(names) if name in ("relax.nn.conv2d", "relax.matmul"))
    first = next(i for i, name in enumerate(names) if name not in ("relax.reshape", "relax.permute_dims"))
    epilogue = {
        name: chain[i] for i, name in enumerate(names) if i > product and name in ("relax.multiply", "relax.add")
    }
    last = product + 1 + len(epilogue)
    is_conv = names[product] == "relax.nn.conv2d"
    call = chain[product]
    scale, bias = (
        constants.value(epilogue[name].args[1]).reshape(-1) if name in epilogue else None  # type: ignore[union-attr]
        for name in ("relax.multiply", "relax.add")
    )
    weights = constants.value(call.args[1])
    assert weights is not None
    predicate, threshold, direction, levels, ring, ring_widths = _read_binarize(chain[first:product], constants)
    data_shape = static_shape(chain[first].args[0])
    assert data_shape is not None
    geometry = None
    if is_conv:
        pads = tuple(int(width) for width in call.attrs.padding) if ring is None else ring_widths
        geometry = ConvGeometry(
            batch=data_shape[0],
            in_channels=data_shape[1],
            height=data_shape[2],
            width=data_shape[3],
            out_channels=weights.shape[0],
            kernel=(weights.shape[2], weights.shape[3]),
            strides=tuple(int(stride) for stride in call.attrs.strides),  # type: ignore[arg-type]
            pads=pads,  # type: ignore[arg-type]
            dilations=tuple(int(size) for size in call.attrs.dilation),  # type: ignore[arg-type]
            groups=int(call.attrs.groups),
        )
    input_shape = static_shape(function.params[0])
    assert input_shape is not None
    return BinarySpec(
        input_shape=input_shape,
        prefix=tuple(_read_move(move) for move in chain[:first]),
        suffix=tuple(_read_move(move) for move in chain[last:]),
        predicate=predicate,
        threshold=threshold,
        direction=direction,
        low=levels[0],
        high=levels[-1],
        ring=ring,
        geometry=geometry,
        rows=0 if is_conv else data_shape[0],
        weights=weights,
        scale=scale,
        bias=bias,
        rounded=bool(function.attrs.get("bnnc.rounded", False)),
        levels=levels if len(levels) > 2 else (),
    )


def _linear_chain(function: relax.Function) -> list[Call]:
    return [
        binding.value for block in function.body.blocks for binding in block.bindings if isinstance(binding.value, Call)
    ]


def _read_move(call: Call) -> Move:
    if op_name(call) == "relax.permute_dims":
        return ("permute", tuple(int(axis) for axis in call.attrs.axes))
    shape = static_shape(call)
    assert op_name(call) == "relax.reshape" and shape is not None
    return ("reshape", shape)


def _read_binarize(
    calls: Sequence[Call], constants: ConstantEvaluator
) -> tuple[str, Array, Array | None, tuple[float, ...], float | None, tuple[int, ...]]:
    """Predicate, threshold, direction, values (low, high or all levels), ring and its widths."""

    def constant(expr: relax.Expr) -> Array:
        value = constants.value(expr)
        assert value is not None
        return value

    ring, widths = None, (0, 0, 0, 0)
    if op_name(calls[-1]) == "relax.nn.pad":
        pad = calls[-1].attrs
        ring = float(pad.pad_value)
        sizes = [int(width) for width in pad.pad_width]
        widths = (sizes[4], sizes[6], sizes[5], sizes[7])
        calls = calls[:-1]
    wheres = [call for call in calls if op_name(call) == "relax.where"]
    compares = [call for call in calls if op_name(call).removeprefix("relax.") in _COMPARE.values()]
    if {op_name(call) for call in compares} == {"relax.less", "relax.greater"}:
        ends = (float(constant(wheres[0].args[1])), float(constant(wheres[1].args[1])))
        return "ternary", np.zeros((), np.float32), None, ends, ring, widths
    levels = (float(constant(wheres[0].args[2])), *(float(constant(where.args[1])) for where in wheres))
    direction = constant(calls[0].args[1]) if op_name(calls[0]) == "relax.multiply" else None
    predicate = next(short for short, long in _COMPARE.items() if op_name(compares[0]) == f"relax.{long}")
    if any(op_name(call) == "relax.logical_not" for call in calls):
        predicate = next(negated for negated, plain in _NEGATED.items() if plain == predicate)
    thresholds = [constant(compare.args[1]) for compare in compares]
    threshold = thresholds[0] if len(levels) == 2 else np.stack(thresholds)
    return predicate, threshold, direction, levels, ring, widths


def binary_composites(module: tvm.IRModule) -> dict[Any, relax.Function]:
    """The module's canonical composites by global variable."""
    return {
        variable: function
        for variable, function in module.functions.items()
        if isinstance(function, relax.Function)
        and function.attrs is not None
        and function.attrs.get("Composite", None) in (CONV_COMPOSITE, DENSE_COMPOSITE)
    }
