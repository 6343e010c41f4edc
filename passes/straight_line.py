"""What a Relax function does, where it is a straight line of kernel calls on tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax, tirx
from tvm.ir import Call, Constant, GlobalVar

from bnn_compiler.memory_plan import Lifetime

#: On the entry of a split kernel: the symbol of the body that it calls.
BODY_ATTR = "bnnc.body"


@dataclass(frozen=True)
class Step:
    """A kernel call; each argument is a parameter, an allocation (the variable bound to it) or a constant."""

    kernel: GlobalVar
    arguments: tuple[relax.Expr, ...]


@dataclass
class StraightLine:
    """``constants`` are those of ``steps``, once each, in order of their first use."""

    steps: list[Step] = field(default_factory=list)
    allocations: list[relax.Var] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)

    def lifetimes(self) -> dict[relax.Var, Lifetime]:
        """From the first to the last step that each allocation is handed to; without those that no step is."""
        first: dict[relax.Expr, int] = {}
        last: dict[relax.Expr, int] = {}
        for number, step in enumerate(self.steps):
            for argument in step.arguments:
                first.setdefault(argument, number)
                last[argument] = number
        return {
            variable: Lifetime(tensor_bytes(variable), first[variable], last[variable])
            for variable in self.allocations
            if variable in first
        }


def read_straight_line(module: tvm.IRModule, function: relax.Function) -> StraightLine | None:
    """Return what ``function`` does, or None if it is no straight line.

    Wants kernels split (``SplitKernels``) and called directly on explicitly allocated buffers. Bindings may be

    1. allocations of static shape;
    2. calls of split kernels, which are those on dense tensors that begin where their memory does;
    3. other names of such tensors: variables, reshapes, tuples and their items, constants.
    """
    line = StraightLine()
    values: dict[relax.Var, relax.Expr] = {parameter: parameter for parameter in function.params}

    def resolve(expression: relax.Expr) -> relax.Expr:
        """Return the parameter, allocation, constant or tuple of them that stands behind ``expression``."""
        if isinstance(expression, relax.Var):
            return values[expression]
        if isinstance(expression, relax.Tuple):
            return relax.Tuple([resolve(item) for item in expression.fields])
        if isinstance(expression, relax.TupleGetItem):
            whole = resolve(expression.tuple_value)
            return whole.fields[expression.index] if isinstance(whole, relax.Tuple) else expression
        if isinstance(expression, Call) and expression.op == tvm.ir.Op.get("relax.reshape"):
            return resolve(expression.args[0])
        return expression

    for binding in (binding for block in function.body.blocks for binding in block.bindings):
        if not isinstance(binding, relax.VarBinding):
            return None
        value = binding.value
        if isinstance(value, Call) and value.op == tvm.ir.Op.get("relax.builtin.alloc_tensor"):
            if not _is_static(binding.var):  # 1
                return None
            values[binding.var] = binding.var
            line.allocations.append(binding.var)
        elif isinstance(value, Call) and isinstance(value.op, GlobalVar):
            arguments = tuple(resolve(argument) for argument in value.args)
            if not _takes_tensors(module[value.op], arguments):  # 2
                return None
            line.steps.append(Step(value.op, arguments))
            values[binding.var] = relax.Tuple([])
        else:
            values[binding.var] = resolve(value)
            if not isinstance(values[binding.var], relax.Var | relax.Tuple | Constant):  # 3
                return None
    line.constants = distinct_constants(line.steps)
    return line


def takes_dense_tensors(kernel: tirx.PrimFunc) -> bool:
    """Whether all parameters are dense tensors that begin where their memory does."""
    return all(
        tirx.buffer.is_buffer_var(parameter)
        and not parameter.ty.strides
        and isinstance(parameter.ty.elem_offset, tirx.IntImm)
        and int(parameter.ty.elem_offset) == 0
        for parameter in kernel.params
    )


def tensor_bytes(tensor: relax.Expr) -> int:
    """Bytes of a tensor of static shape."""
    shape: list[int] = [int(extent) for extent in tensor.ty.shape]
    return math.prod(shape) * element_bytes(str(tensor.ty.dtype))


def element_bytes(dtype: str) -> int:
    """Bytes of an element; a bool has one."""
    bits: int = tvm.DataType(dtype).bits
    return -(-bits // 8)


def _is_static(tensor: relax.Var) -> bool:
    shape = tensor.ty.shape
    return isinstance(shape, relax.ShapeExpr) and all(isinstance(extent, tirx.IntImm) for extent in shape)


def _takes_tensors(kernel: tvm.ir.BaseFunc, arguments: Sequence[relax.Expr]) -> bool:
    """Rule 2."""
    if not isinstance(kernel, tirx.PrimFunc) or BODY_ATTR not in kernel.attrs:
        return False
    return all(isinstance(argument, relax.Var | Constant) for argument in arguments)


def distinct_constants(steps: Sequence[Step]) -> list[Constant]:
    """The constants that ``steps`` take, each once, in order of their first use."""
    found: list[Constant] = []
    for argument in (argument for step in steps for argument in step.arguments):
        if isinstance(argument, Constant) and not any(argument.same_as(known) for known in found):
            found.append(argument)
    return found
