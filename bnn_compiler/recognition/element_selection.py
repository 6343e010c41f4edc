"""Operators whose results consist of elements of their operands, unchanged: whatever holds for those holds for these.

Among them are calls of kernels (``call_tir``), as TVM's importer writes reflecting pads: those whose body is one loop
nest that stores what it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call

from bnn_compiler.constants import op_name

Functions = Mapping[Any, Any]

_SELECTIONS = frozenset(
    f"relax.{name}"
    for name in (
        "permute_dims", "reshape", "flatten", "expand_dims", "squeeze", "broadcast_to", "strided_slice",
        "dynamic_strided_slice", "take", "gather_elements", "gather_nd", "split", "tile", "repeat", "flip",
        "nn.max_pool1d", "nn.max_pool2d", "nn.max_pool3d", "nn.pixel_shuffle",
    )
)  # fmt: skip


def selected_operands(expr: relax.Expr, functions: Functions) -> list[relax.Expr] | None:
    """The tensors from which every element of ``expr`` (a definition) is taken, or None if it may be something else.

    ``functions``: the module's functions by global variable.
    """
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    if not isinstance(expr, Call):
        return None
    name = op_name(expr)
    if name in _SELECTIONS:
        return [expr.args[0]]
    if name == "relax.concat":
        return list(getattr(expr.args[0], "fields", [])) or None
    if name == "relax.nn.pad":
        return None if str(getattr(expr.attrs, "pad_mode", "constant")) == "constant" else [expr.args[0]]
    if name == "relax.image.resize2d":
        # A region that reaches beyond the image is filled with a value of its own.
        cropped = str(expr.attrs.coordinate_transformation_mode) == "tf_crop_and_resize"
        return [expr.args[0]] if str(expr.attrs.method) == "nearest_neighbor" and not cropped else None
    return _copied_operand(expr, functions) if name == "relax.call_tir" else None


def _copied_operand(call: Call, functions: Functions) -> list[relax.Expr] | None:
    """The argument that a kernel copies elements of, if it is a single loop nest around one such store."""
    function = functions.get(call.args[0])
    if not isinstance(function, tvm.tirx.PrimFunc) or len(call.args) != 2:
        return None
    node = function.body
    while not isinstance(node, tvm.tirx.BufferStore):
        if isinstance(node, tvm.s_tir.SBlockRealize):
            node = node.block
        elif isinstance(node, tvm.tirx.For) or (isinstance(node, tvm.s_tir.SBlock) and node.init is None):
            node = node.body
        else:
            return None
    if not isinstance(node.value, tvm.ir.TensorLoad):
        return None
    arguments = list(call.args[1].fields)
    for parameter, argument in zip(function.params, arguments, strict=False):
        if parameter.same_as(node.value.source):
            return [argument]
    return None
