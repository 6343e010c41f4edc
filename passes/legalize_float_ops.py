"""TVM's definitions of operators, with our own where its results for NaN, infinities and zeros are others."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, topi

from bnn_compiler.constants import dtype_of, static_shape
from bnn_compiler.schedules.float_definitions import extreme, index_of_extreme, prelu, sign


def _sign(builder: Any, call: relax.Call) -> relax.Expr:
    return builder.call_te(sign, call.args[0], primfunc_name_hint="tir_sign")


def _prelu(builder: Any, call: relax.Call) -> relax.Expr:
    axis = int(call.attrs.axis) % len(call.ty.shape)
    return builder.call_te(prelu, call.args[0], call.args[1], axis, primfunc_name_hint="prelu")


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
            "relax.argmax": _first_index,
            "relax.argmin": _first_index,
            "relax.max": _extreme,
            "relax.min": _extreme,
            "relax.nn.prelu": _prelu,
            "relax.sign": _sign,
        }
    )
