"""Element-wise arithmetic with the rounding of every single operation, as ONNX Runtime computes it.

TVM lets LLVM contract ``a * b + c`` into one fused multiply-add, which rounds once where the graph's two operators
round twice. The last bit then differs from ONNX Runtime's, a sign behind it may, and results that could be equal are
not. ``llvm.arithmetic.fence`` forbids the contraction and costs an instruction, which memory hides.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlock

_DTYPES = ("float32", "float64")


def keep_roundings(body: Any) -> Any:
    """Fence each product that is added to or subtracted from; a statement with a reduction stays as it is.

    A reduction's order of summation is not the graph's anyway, and it gains from the contraction.
    """
    reduces: list[Any] = []

    def note(block: SBlock) -> SBlock:
        if block.init is not None:
            reduces.append(block)
        return block

    tvm_ffi.structural_map(body, (SBlock, note))
    if reduces:
        return body
    return tvm_ffi.structural_map(
        tvm_ffi.structural_map(body, (tirx.Add, _fence_operands)), (tirx.Sub, _fence_operands)
    )


def _fence_operands(sum_of_two: Any) -> Any:
    """``fence(a * b) + c``; scalars only, because schedules vectorise afterwards."""
    if str(sum_of_two.ty.dtype) not in _DTYPES:
        return sum_of_two
    return type(sum_of_two)(_fenced(sum_of_two.a), _fenced(sum_of_two.b))


def _fenced(operand: Any) -> Any:
    if not isinstance(operand, tirx.Mul):
        return operand
    return tirx.call_llvm_pure_intrin(str(operand.ty.dtype), "llvm.arithmetic.fence", operand)
