"""TVM's definitions of operators, with our own where its results for NaN, infinities and zeros are others."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, topi

from bnn_compiler.constants import dtype_of, static_shape
from bnn_compiler.schedules.float_definitions import extreme, index_of_extreme, plus_zero, prelu, sign, zero_over


def _sign(builder: Any, call: relax.Call) -> relax.Expr:
    return builder.call_te(sign, call.args[0], primfunc_name_hint="tir_sign")


def _prelu(builder: Any, call: relax.Call) -> relax.Expr:
    axis = int(call.attrs.axis) % len(call.ty.shape)
    return builder.call_te(prelu, call.args[0], call.args[1], axis, primfunc_name_hint="prelu")


def _is_zero(operand: relax.Expr) -> bool:
    """Whether it is the scalar constant 0, which TVM's definitions fold."""
    if not isinstance(operand, tvm.ir.GenericConst) or static_shape(operand) != ():
        return False
    return dtype_of(operand) in ("float32", "float64") and float(operand.value.numpy()) == 0


def _by_tvm(builder: Any, call: relax.Call) -> relax.Expr:
    return call.op.get_attr("FLegalize")(builder, call)


def _divide(builder: Any, call: relax.Call) -> relax.Expr:
    if _is_zero(call.args[0]) and static_shape(call.args[1]) == static_shape(call):
        return builder.call_te(zero_over, call.args[1], primfunc_name_hint="divide")
    return _by_tvm(builder, call)


def _add(builder: Any, call: relax.Call) -> relax.Expr:
    for data, other in (call.args, reversed(call.args)):
        if _is_zero(other) and static_shape(data) == static_shape(call):
            return builder.call_te(plus_zero, data, primfunc_name_hint="add")
    return _by_tvm(builder, call)


def _first_index(builder: Any, call: relax.Call) -> relax.Expr:
    name = str(call.op.name).removeprefix("relax.")
    axis, keepdims = int(call.attrs.axis) % len(call.args[0].ty.shape), bool(call.attrs.keepdims)
    largest = name == "argmax"
    return builder.call_te(index_of_extreme, call.args[0], axis, keepdims, largest, False, primfunc_name_hint=name)


def _extreme(builder: Any, call: relax.Call) -> relax.Expr:
    shape, out_shape = static_shape(call.args[0]), static_shape(call)
    name = str(call.op.name).removeprefix("relax.")
    if not dtype_of(call).startswith("float") or shape is None or not all(shape) or out_shape is None:
        definition = topi.max if name == "max" else topi.min
        return builder.call_te(definition, call.args[0], call.attrs.axis, call.attrs.keepdims)
    given = call.attrs.axis
    axes = range(len(shape)) if given is None else sorted({int(axis) % len(shape) for axis in given})
    return builder.call_te(
        extreme, call.args[0], tuple(axes), bool(call.attrs.keepdims), name == "max", primfunc_name_hint=name
    )


def legalize_float_ops() -> tvm.transform.Pass:
    """``relax.transform.LegalizeOps`` with the definitions of ``schedules.float_definitions``."""
    return relax.transform.LegalizeOps(
        {
            "relax.add": _add,
            "relax.argmax": _first_index,
            "relax.argmin": _first_index,
            "relax.divide": _divide,
            "relax.max": _extreme,
            "relax.min": _extreme,
            "relax.nn.prelu": _prelu,
            "relax.sign": _sign,
        }
    )
