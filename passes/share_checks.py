"""The checks of callers' tensors by functions that a library's entries share.

TVM checks each field of each tensor where it is used, each check with words of its own: half a kilobyte of code per
tensor, more than what a small network computes with. Here

    conv(x: Buffer((1, 64, 8, 8), "float32"), w)  { bnnc_conv(x.data, w) }

becomes

    conv(x, w)  { assert bnnc_check_tensor_4d(x, float32, 1, 64, 8, 8) == 0; bnnc_conv(x->data, w) }

and TVM's checks of ``w``, a constant of the library, go.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import GlobalVar, PointerType, PrimType, StringImm

from bnn_compiler.code_generation import C_CONVENTION

from .kernel_bodies import CALLS_BODIES_ATTR, data_of, unchecked_tensor

#: On a function that calls bodies: per position of a parameter that is checked, what a refusal says.
_REFUSALS_ATTR = "bnnc.refusals"

# tvm::tirx::builtin::TVMStructFieldKind
_DATA, _SHAPE, _STRIDES, _RANK, _CODE, _BITS, _LANES, _BYTE_OFFSET = range(1, 9)
_DEVICE_TYPE = 10
_INT64_ELEMENT = 17
_CPU = 1  # kDLCPU


@tvm.transform.module_pass(opt_level=0, name="ShareChecks")
class ShareChecks:
    """Check the parameters that are buffers by calls of functions that are added to the module, one per rank.

    Wants nothing but functions that call bodies (``SplitKernels``, ``RunInOneCall``), before they are lowered.
    ``DropOwnChecks`` has to follow once they are. What is checked: rank, element type, every extent, dense in row-major
    order (strides of extents of 1 say nothing), no byte offset, on the CPU, data there.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        ranks: set[int] = set()
        for variable, function in module.functions_items():
            checked = {i: buffer for i, buffer in enumerate(function.params) if tirx.buffer.is_buffer_var(buffer)}
            ranks.update(len(buffer.ty.shape) for buffer in checked.values())
            result.update_func(variable, _with_shared_checks(function, str(variable.name_hint), checked))
        for rank in sorted(ranks):
            result.update_func(GlobalVar(_check_name(rank)), _check_function(rank))
        return result


@tvm.transform.module_pass(opt_level=0, name="DropOwnChecks")
class DropOwnChecks:
    """Remove from functions of ``ShareChecks`` what TVM's lowering checks of arguments that are the library's own.

    1. That an argument is a tensor stays for those that may be a caller's, with one message per argument.
    2. For constants, and what the runtime allocated, it goes; so does the number of arguments, which the virtual
       machine has checked for its function, and which its code has right.
    3. What they allocate is on device 0. TVM takes it from tensors that it checks.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        zero = tirx.const(0, "int32")
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and _REFUSALS_ATTR in function.attrs:
                refusals = {int(i): str(text) for i, text in function.attrs[_REFUSALS_ATTR].items()}
                body = _without_own_checks(function.body, refusals)
                result.update_func(variable, function.with_body(tirx.AttrStmt(zero, "device_id", zero, body)))
        return result


def _with_shared_checks(function: tirx.PrimFunc, name: str, checked: Mapping[int, tirx.Var]) -> tirx.PrimFunc:
    parameters = list(function.params)
    checks: list[tirx.Stmt] = []
    views: list[tirx.Stmt] = []
    refusals: dict[str, str] = {}
    for index, buffer in checked.items():
        shape, dtype = [int(extent) for extent in buffer.ty.shape], str(buffer.ty.dtype)
        parameters[index] = tensor = unchecked_tensor(str(buffer.name))
        refusals[str(index)] = (
            f"{name}: argument {index}, {buffer.name}, must be a dense {dtype} tensor of shape {shape} on the CPU"
        )
        failed = tirx.call_extern(
            "int32",
            _check_name(len(shape)),
            tensor,
            tirx.const(_type_word(dtype), "int32"),
            *(tirx.const(extent, "int64") for extent in shape),
        )
        if 0 not in shape:  # else there is nothing to read or write, and NumPy may give no address
            checks.append(_assertion("ValueError", failed == tirx.const(0, "int32"), refusals[str(index)]))
        pointer = tirx.Var(f"{buffer.name}_data", PointerType(buffer.ty.dtype))
        views += [
            tirx.Bind(pointer, tirx.reinterpret(pointer.ty, data_of(tensor))),
            tirx.DeclBuffer(buffer, data=pointer),
        ]
    body = tirx.SeqStmt([*checks, *views, function.body]) if views else function.body
    result = tirx.PrimFunc(parameters, body, function.ret_type, function.attrs)
    return result.with_attr(_REFUSALS_ATTR, refusals)


def _without_own_checks(body: tirx.Stmt, refusals: Mapping[int, str]) -> tirx.Stmt:
    nothing = tirx.Evaluate(tirx.const(0, "int32"))

    def keep(check: tirx.AssertStmt) -> tirx.Stmt:
        words = [str(part.value) for part in check.message_parts]
        if words[0] in ("Expected ", "args pointer is NULL"):  # 2
            return nothing
        if words[0] != "Mismatched type on argument #":
            return check
        index = int(words[1])
        return _assertion("TypeError", check.condition, refusals[index]) if index in refusals else nothing

    return tvm_ffi.structural_map(body, (tirx.AssertStmt, keep))


def _assertion(kind: str, condition: tirx.Expr, message: str) -> tirx.AssertStmt:
    return tirx.AssertStmt(condition, StringImm(kind), [StringImm(message)])


def _check_name(rank: int) -> str:
    return f"bnnc_check_tensor_{rank}d"


def _type_word(dtype: str) -> int:
    parsed = tvm.DataType(dtype)
    return int(parsed.type_code) | int(parsed.bits) << 8 | int(parsed.lanes) << 16


def _check_function(rank: int) -> tirx.PrimFunc:
    """(tensor, element type as ``_type_word``, extents …) -> 0 if the tensor is of that kind, else an error."""
    tensor = unchecked_tensor("tensor")
    kind = tirx.Var("type", PrimType("int32"))
    extents = [tirx.Var(f"extent_{axis}", PrimType("int64")) for axis in range(rank)]

    def field(which: int, dtype: str) -> tirx.Expr:
        return tirx.tvm_struct_get(tensor, 0, which, dtype)

    def element(pointer: tirx.Expr, axis: int) -> tirx.Expr:
        return tirx.tvm_struct_get(pointer, axis, _INT64_ELEMENT, "int64")

    code, bits, lanes = (
        tirx.Cast("int32", field(which, dtype))
        for which, dtype in ((_CODE, "uint8"), (_BITS, "uint8"), (_LANES, "uint16"))
    )
    header = [
        field(_RANK, "int32") == tirx.const(rank, "int32"),
        code + bits * tirx.const(1 << 8, "int32") + lanes * tirx.const(1 << 16, "int32") == kind,
        field(_DEVICE_TYPE, "int32") == tirx.const(_CPU, "int32"),
        field(_BYTE_OFFSET, "uint64") == tirx.const(0, "uint64"),
        tirx.Not(tirx.isnullptr(field(_DATA, "handle"))),
    ]
    shape, strides = field(_SHAPE, "handle"), field(_STRIDES, "handle")
    same = [element(shape, axis) == extent for axis, extent in enumerate(extents)]
    dense: list[tirx.Expr] = []
    step: tirx.Expr = tirx.const(1, "int64")
    for axis in reversed(range(rank)):
        dense.append(tirx.Or(extents[axis] == tirx.const(1, "int64"), element(strides, axis) == step))
        step = step * extents[axis]
    # Each check reads what the one before has found to be there; what went wrong, the caller says.
    checks: list[tirx.Stmt] = [
        _assertion("ValueError", tirx.all(*conditions), "not such a tensor")
        for conditions in ([tirx.Not(tirx.isnullptr(tensor))], header, same)
        if conditions
    ]
    if dense:
        is_dense = _assertion("ValueError", tirx.all(*dense), "not dense")
        checks.append(tirx.IfThenElse(tirx.Not(tirx.isnullptr(strides)), is_dense, None))
    body = tirx.SeqStmt(checks)
    attributes = {
        "global_symbol": _check_name(rank),
        "calling_conv": C_CONVENTION,
        "s_tir": True,
        CALLS_BODIES_ATTR: True,
    }
    return tirx.PrimFunc(
        [tensor, kind, *extents], body, PrimType("int32"), tvm.ir.make_node("ir.DictAttrs", **attributes)
    )
