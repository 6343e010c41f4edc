"""Values that a statement reads several times: named in its expression, then computed once into registers.

Inlining puts the definition of an intermediate in the place of each read. Where the intermediate is read twice, as in
``x * sigmoid(x)``, a row of those doubles the expression at every step. So ``read_once`` makes one read of all equal
ones, ``let v = p[i] in v * sigmoid(v)``, which inlining then turns into ``let v = <definition> in …``: expressions grow
with the number of operators.

TVM's simplifier would put the value in the place of its name again wherever it reads no memory. ``compute_once``
therefore makes a statement of each, which stores the value where LLVM keeps it in a register: a buffer of one vector in
a loop that becomes one, of one element elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad, Var
from tvm.s_tir import SBlock

from .float_rounding import fence

Expr = Any
Statement = Any

_LANE = "int64"
_TRUTH = "int8"


def read_once(block: SBlock, buffer: Any) -> SBlock:
    """``block`` with its reads of the same element of ``buffer`` as one.

    1. The block is one store. 2. No index depends on what ``buffer`` holds. 3. What only one branch of a condition
    reads is read in that branch: elsewhere the element may not exist.
    """
    store = block.body
    if not isinstance(store, tirx.BufferStore) or any(reads_of(index, buffer) for index in _indices(store.value)):
        return block
    value = tvm_ffi.structural_map(store.value, (Call, lambda call: _name_in_branches(call, buffer)))
    value = _name_repeated(value, buffer)
    if value.same_as(store.value):
        return block
    body = tirx.BufferStore(store.buffer, value, store.indices)
    return SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init, block.alloc_buffers,
        block.match_buffers, block.annotations,
    )  # fmt: skip


def reads_of(body: Any, buffer: Any) -> list[TensorLoad]:
    """The loads of ``buffer`` in a statement or an expression."""
    found: list[TensorLoad] = []

    def visit(load: TensorLoad) -> None:
        if load.source.same_as(buffer):
            found.append(load)

    tvm_ffi.structural_walk(body, (TensorLoad, visit))
    return found


def compute_once(body: Statement) -> Statement:
    """Statements in place of the names that stores give to values."""
    body = tvm_ffi.structural_map(body, (tirx.For, _compute_vectors_once))
    return tvm_ffi.structural_map(body, (tirx.BufferStore, _compute_element_once))


def _indices(value: Expr) -> list[Expr]:
    found: list[Expr] = []
    tvm_ffi.structural_walk(value, (TensorLoad, lambda load: found.extend(load.indices)))
    return found


def _name_in_branches(call: Call, buffer: Any) -> Call:
    if not _is_condition(call):
        return call
    condition, *branches = call.args
    named = [_name_repeated(branch, buffer) for branch in branches]
    unchanged = all(new.same_as(old) for new, old in zip(named, branches, strict=True))
    return call if unchanged else tirx.if_then_else(condition, *named)


def _name_repeated(value: Expr, buffer: Any) -> Expr:
    """A name for each element of ``buffer`` that ``value`` reads in any case, and more than once."""
    reads = reads_of(value, buffer)
    if len(reads) < 2:
        return value
    for load in _distinct(_unconditional_reads(value, buffer)):
        if sum(_equal(load, other) for other in reads) > 1:
            name = tirx.Var("shared", str(load.ty.dtype))
            value = tirx.Let(name, load, _replace(value, load, name))
    return value


def _unconditional_reads(value: Expr, buffer: Any) -> list[TensorLoad]:
    found: list[TensorLoad] = []

    def visit_load(load: TensorLoad) -> None:
        if load.source.same_as(buffer):
            found.append(load)

    def visit_call(call: Call) -> Any:
        if not _is_condition(call):
            return None
        tvm_ffi.structural_walk(call.args[0], callbacks, order="pre")
        return tvm_ffi.WalkResult.SKIP

    callbacks = ((TensorLoad, visit_load), (Call, visit_call))
    tvm_ffi.structural_walk(value, callbacks, order="pre")
    return found


def _distinct(loads: Sequence[TensorLoad]) -> list[TensorLoad]:
    found: list[TensorLoad] = []
    for load in loads:
        if not any(_equal(load, other) for other in found):
            found.append(load)
    return found


def _equal(left: Expr, right: Expr) -> bool:
    return bool(tvm_ffi.structural_equal(left, right))


def _replace(value: Expr, load: TensorLoad, name: Var) -> Expr:
    def visit(other: TensorLoad) -> Expr:
        return name if other.source.same_as(load.source) and _equal(load, other) else other

    return tvm_ffi.structural_map(value, (TensorLoad, visit))


def _is_condition(call: Call) -> bool:
    return str(getattr(call.op, "name", "")) == "tirx.if_then_else"


def _compute_vectors_once(loop: tirx.For) -> Statement:
    """Registers are allocated outside of the loop over the lanes, which have one element each."""
    if loop.kind != tirx.ForKind.VECTORIZED:
        return loop
    registers = _Registers(int(loop.extent), loop.loop_var)
    body = tvm_ffi.structural_map(loop.body, (tirx.BufferStore, registers.store))
    if not registers.allocations:
        return loop
    lanes = tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, None, loop.annotations)
    return tirx.SeqStmt([*registers.allocations, lanes])


def _compute_element_once(store: tirx.BufferStore) -> Statement:
    registers = _Registers(1, tirx.const(0, _LANE))
    statement = registers.store(store)
    return tirx.SeqStmt([*registers.allocations, statement]) if registers.allocations else store


class _Registers:
    """Turns the names in stores into buffers of ``size`` elements, of which each statement has number ``lane``."""

    def __init__(self, size: int, lane: Expr) -> None:
        self.allocations: list[Statement] = []
        self._size = size
        self._lane = lane
        self._values: dict[Var, Expr] = {}
        self._conditions: list[Expr] = []
        self._statements: list[Statement] = []

    def store(self, store: tirx.BufferStore) -> Statement:
        """``store`` behind the statements that compute what it names."""
        self._statements = []
        value = self._without_names(store.value)
        if not self._statements and value.same_as(store.value):
            return store
        final = tirx.BufferStore(store.buffer, value, store.indices)
        return tirx.SeqStmt([*self._statements, final]) if self._statements else final

    def _without_names(self, value: Expr) -> Expr:
        callbacks = ((tirx.Let, self._name), (Call, self._condition), (Var, self._value))
        return tvm_ffi.structural_map(value, callbacks, order="pre")

    def _value(self, name: Var) -> Expr:
        return self._values.get(name, name)

    def _name(self, let: tirx.Let) -> Expr:
        value = self._without_names(let.value)
        self._values[let.var] = value if isinstance(value, (TensorLoad, Var, tirx.FloatImm)) else self._keep(value)
        return self._without_names(let.body)

    def _keep(self, value: Expr) -> Expr:
        """A load of the register that holds ``value`` from here on."""
        dtype = str(value.ty.dtype)
        if dtype == "bool":
            # TVM loads vectors of them as bytes, and computes with them as bits.
            return self._keep(tirx.Cast(_TRUTH, value)) != tirx.const(0, _TRUTH)
        register = tirx.decl_buffer((self._size,), dtype, f"shared_{len(self.allocations)}", layout=None)
        self.allocations.append(tirx.AllocBuffer(register))
        # LLVM sees through the register, and would contract a product in it and a sum that reads it.
        value = fence(value) if isinstance(value, tirx.Mul) else value
        for condition in reversed(self._conditions):
            value = tirx.if_then_else(condition, value, tirx.const(0, dtype))
        self._statements.append(tirx.BufferStore(register, value, [self._lane]))
        return tirx.BufferLoad(register, [self._lane])

    def _condition(self, call: Call) -> Expr:
        """A value with a name in one branch is computed on that branch's condition."""
        if not _is_condition(call) or not _has_names(call):
            return call
        condition = self._without_names(call.args[0])
        branches = []
        for taken, branch in zip((condition, tirx.Not(condition)), call.args[1:], strict=True):
            self._conditions.append(taken)
            branches.append(self._without_names(branch))
            self._conditions.pop()
        return tirx.if_then_else(condition, *branches)


def _has_names(value: Expr) -> bool:
    names: list[tirx.Let] = []
    tvm_ffi.structural_walk(value, (tirx.Let, names.append))
    return bool(names)
