"""A kernel as two functions: its body, called as in C, and an entry that checks tensors and calls it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType

from bnn_compiler.code_generation import C_CONVENTION

from .straight_line import element_bytes

#: On a PrimFunc that does nothing but call bodies.
CALLS_BODIES_ATTR = "bnnc.calls_bodies"
_TENSOR_DATA = 1  # tvm::tirx::builtin::TVMStructFieldKind::kDLTensorData
_STACK_BYTES = 1024  # TVM puts buffers up to this on the stack (runtime::kMaxStackAlloca)


def split_kernel(kernel: tirx.PrimFunc, symbol: str, checked: Collection[int]) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Return the body of ``kernel``, named ``symbol``, and its entry, which takes tensors as ``kernel`` does.

    The body takes a pointer for each tensor and returns 0 (``FinishPlainFunctions``), or another number after an error.
    The entry checks the tensors at the positions ``checked``.
    """
    pointers = [tirx.Var(str(buffer.name), PointerType(buffer.ty.dtype)) for buffer in kernel.params]
    views = [tirx.DeclBuffer(buffer, data=pointer) for buffer, pointer in zip(kernel.params, pointers, strict=True)]
    body = tirx.PrimFunc(pointers, tirx.SeqStmt([*views, kernel.body]), PrimType("int32"), kernel.attrs)
    parameters, data = [], []
    for index, buffer in enumerate(kernel.params):
        if index in checked:
            parameter = copy_buffer(buffer)
            data.append(parameter.data)
        else:
            parameter = unchecked_tensor(str(buffer.name))
            data.append(data_of(parameter))
        parameters.append(parameter)
    entry = tirx.PrimFunc(parameters, call_body(symbol, data), kernel.ret_type, kernel.attrs)
    entry = entry.with_attr(CALLS_BODIES_ATTR, True)
    return body.with_attr({"global_symbol": symbol, "calling_conv": C_CONVENTION}), entry


def unchecked_tensor(name: str) -> tirx.Var:
    """Return a parameter that takes any tensor."""
    return tirx.Var(name, PointerType(PrimType("void")))


def data_of(tensor: tirx.Var) -> tirx.Expr:
    """Return where the elements of an ``unchecked_tensor`` begin."""
    return tirx.tvm_struct_get(tensor, 0, _TENSOR_DATA, "handle")


def call_body(symbol: str, pointers: Sequence[tirx.Expr]) -> tirx.Stmt:
    """Return the statement that calls a body, and leaves the calling function if it failed."""
    failed = tirx.call_extern("int32", symbol, *pointers) != tirx.const(0, "int32")
    return tirx.IfThenElse(failed, tirx.Evaluate(tirx.tvm_throw_last_error()), None)


def scratch_bytes(kernel: tirx.PrimFunc) -> int:
    """Return what a kernel allocates for itself from the thread's pool, as if all of it were in use at once."""
    buffers: list[tirx.Var] = []
    tvm_ffi.structural_walk(
        kernel.body,
        (
            (tvm.s_tir.SBlock, lambda block: buffers.extend(block.alloc_buffers)),
            (tirx.AllocBuffer, lambda allocation: buffers.append(allocation.buffer)),
        ),
    )
    sizes = [
        math.prod(int(extent) for extent in buffer.ty.shape) * element_bytes(str(buffer.ty.dtype)) for buffer in buffers
    ]
    return sum(size for size in sizes if size > _STACK_BYTES)


def copy_buffer(buffer: tirx.Var, shape: Sequence[tirx.Expr | int] | None = None) -> tirx.Var:
    """Return another dense buffer of the same type, or of another shape."""
    return tirx.decl_buffer(
        buffer.ty.shape if shape is None else shape,
        buffer.ty.dtype,
        buffer.name,
        scope=buffer.scope(),
        data_alignment=buffer.ty.data_alignment,
    )
