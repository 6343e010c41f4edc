"""A thin layer over TVM's IRBuilder: how every kernel here is written.

A kernel is a Python function that emits statements; Python loops unroll, ``serial`` loops stay loops. Two things about
TVM decide the shape of this layer:

- An accumulator must be a block-level buffer of *global* scope and constant size below 1 KiB: TVM puts that on the
  stack, and LLVM promotes it to a register as long as every index is a constant. A ``local`` scope allocates from the
  heap instead (found by running it: 2.8 times slower).
- A vector load may cross the rows of a tensor, so kernels index flat views of their arguments.

Buffers declare the alignment of one element, so arguments may lie anywhere; vector moves do not care on the CPUs of
the last ten years.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

#: A TIR expression, buffer or function; TVM ships no type information.
Expr = Any
Buffer = Any
PrimFunc = Any
Index = Any

#: FuseOps leaves functions of this kind alone (``OpPatternKind.kOpaque``).
_OPAQUE_PATTERN = 8


@dataclass(frozen=True)
class Argument:
    """A parameter of a kernel: a dense tensor in row-major order."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def build_kernel(
    name: str, kernel: str, arguments: Sequence[Argument], emit: Callable[[Mapping[str, Buffer]], None]
) -> PrimFunc:
    """Build a PrimFunc named ``name``; ``emit`` receives flat one-dimensional views of ``arguments`` by name.

    ``kernel`` is the readable name that reports show (attribute ``bnnc.kernel``). The arguments must not overlap.
    """
    with IRBuilder() as ir_builder:
        with builder.prim_func(is_private=True, s_tir=True):
            builder.func_name(name)
            builder.func_attr({"tirx.noalias": True, "op_pattern": _OPAQUE_PATTERN, "bnnc.kernel": kernel})
            tensors = {
                argument.name: builder.arg(
                    argument.name, builder.buffer(argument.shape, argument.dtype, align=_element_bytes(argument.dtype))
                )
                for argument in arguments
            }
            with builder.sblock("root"):
                builder.reads([])
                builder.writes([])
                emit({argument.name: _flat_view(tensors[argument.name], argument) for argument in arguments})
        return ir_builder.get()


def _element_bytes(dtype: str) -> int:
    return int(np.dtype(dtype).itemsize)


def _flat_view(tensor: Buffer, argument: Argument) -> Buffer:
    size = int(np.prod(argument.shape, dtype=np.int64))
    return builder.decl_buffer((size,), argument.dtype, data=tensor.data, align=_element_bytes(argument.dtype))


def serial(extent: int) -> Any:
    """A loop over ``range(extent)``; a context manager that gives the loop variable."""
    return builder.serial(extent)


@contextlib.contextmanager
def parallel(extent: int) -> Iterator[Expr]:
    """A loop over ``range(extent)`` whose iterations the threads of the call share.

    Scratch memory and registers must be made inside: each iteration then has its own.
    """
    with builder.parallel(extent) as task, builder.sblock("task"):
        builder.reads([])
        builder.writes([])
        yield task


def bind(value: Expr) -> Expr:
    """Name a value so that it is computed once."""
    return builder.Bind(value)


def workspace(size: int, dtype: str) -> Buffer:
    """Scratch memory of the calling thread, aligned to 64 bytes, uninitialised; see ``register`` for small ones."""
    return builder.sblock_alloc_buffer((size,), dtype, align=64)


def register(lanes: int, dtype: str) -> Buffer:
    """One vector register (or a few): only use it with constant indices."""
    if lanes * _element_bytes(dtype) >= 1024:
        raise AssertionError("TVM puts buffers of 1 KiB and more on the heap")
    return builder.sblock_alloc_buffer((lanes,), dtype)


def typed(dtype: str, lanes: int) -> str:
    """TVM's name of a vector type: ``typed("uint64", 8) == "uint64x8"``, and the element type for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, lanes: int) -> Expr:
    """A vector with ``value`` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def constant(value: int | float, dtype: str, lanes: int = 1) -> Expr:
    """An immediate; unsigned 64-bit values may use all their bits."""
    if dtype == "uint64" and value >= 1 << 63:
        # TVM's integer immediates are signed.
        return splat(tirx.bitwise_not(tirx.const(~int(value) & (1 << 64) - 1, "uint64")), lanes)
    return splat(tirx.const(value, dtype), lanes)


def join(scalars: Sequence[Expr]) -> Expr:
    """A vector of ``scalars``."""
    if len(scalars) == 1:
        return scalars[0]
    return tirx.Shuffle(list(scalars), [tirx.const(lane, "int32") for lane in range(len(scalars))])


def minimum(index: Expr, bound: int) -> Expr:
    """The smaller of an index and a bound."""
    return tirx.min(index, tirx.const(bound, "int32"))


def load(buffer: Buffer, index: Index, lanes: int = 1, stride: int = 1) -> Expr:
    """``buffer[index], buffer[index + stride] …`` as a vector of ``lanes``."""
    return buffer[index] if lanes == 1 else buffer[tirx.Ramp(_as_index(index), stride, lanes)]


def store(buffer: Buffer, index: Index, value: Expr, lanes: int = 1) -> None:
    """Store a vector (or, for one lane, a scalar) at consecutive elements from ``index`` on."""
    builder.buffer_store(buffer, value, [index if lanes == 1 else tirx.Ramp(_as_index(index), 1, lanes)])


def prefetch(buffer: Buffer, index: Expr) -> None:
    """Ask for the cache line of an element that will be read soon, into L1; the element need not exist."""
    address = tirx.address_of(tirx.BufferLoad(buffer, [index]))
    # For reading, of high locality, data.
    hints = (tirx.const(value, "int32") for value in (0, 3, 1))
    builder.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *hints))


def _as_index(index: Index) -> Expr:
    return tirx.const(index, "int32") if isinstance(index, int) else index


def tile_starts(extent: int, lanes: int, vectors: int) -> tuple[int, list[int]]:
    """Cover ``range(extent)`` with vectors of ``lanes``, without predicates.

    Returns the number of full tiles (``vectors`` adjacent vectors each, tile ``t`` starts at ``t·vectors·lanes``) and
    the starts of the vectors behind them. The last vector overlaps its neighbour where ``lanes`` does not divide
    ``extent``; computing a few elements twice is cheaper than masks. Needs ``extent >= lanes``.
    """
    if extent < lanes:
        raise AssertionError(f"{extent} elements do not fill a vector of {lanes}")
    full = extent // (lanes * vectors)
    rest = range(full * lanes * vectors, extent, lanes)
    return full, [min(start, extent - lanes) for start in rest]


def copy_lanes(extent: int, widest: int) -> int:
    """The widest power of two of lanes, up to ``widest``, that fits in ``extent`` elements."""
    return min(widest, 1 << (extent.bit_length() - 1))
