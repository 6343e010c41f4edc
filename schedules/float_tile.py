"""The register tile under every float convolution and matrix product.

A tile holds ``rows`` x ``vectors`` accumulators in registers and walks the reduction: each step loads ``vectors``
vectors of one operand and ``rows`` scalars of the other, broadcast. Everything is emitted unrolled, so LLVM promotes
the accumulators to registers; what stays a loop is only the reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_vector import FloatVector

Expr = Any

DTYPE = "float32"
# The sblock through which a kernel writes its result: the scheduling pass inlines elementwise consumers into it.
EPILOGUE_ATTR = "bnnc.epilogue"


def index(value: int) -> Expr:
    """An int64 constant: Relax shapes are int64, and fusion demands the same type everywhere."""
    return tirx.const(value, "int64")


def serial(extent: int) -> AbstractContextManager[Expr]:
    """A serial loop with an int64 variable."""
    return T.serial(index(0), index(extent))  # type: ignore[no-any-return]


# Work that is worth being shared by several threads, in cycles: starting those costs one to three microseconds.
_SHARED_CYCLES = 40_000


def shared(extent: int, cycles: float) -> AbstractContextManager[Expr]:
    """A loop whose iterations the threads of the call share if the whole takes enough ``cycles``.

    Buffers that are used in the loop alone belong to one iteration (TVM allocates them in there).
    """
    if extent < 2 or cycles < _SHARED_CYCLES:
        return serial(extent)
    return T.parallel(index(0), index(extent))  # type: ignore[no-any-return]


def axis(extent: int, binding: Expr) -> Expr:
    """A spatial block axis."""
    return T.axis.spatial(index(extent), binding)


def parameter(name: str, shape: Sequence[int]) -> Expr:
    """Declare the next float32 buffer parameter of the function under construction."""
    shape_exprs = [index(extent) for extent in shape]
    return T.arg(name, T.buffer(shape_exprs, DTYPE, layout=None))


def scratch(name: str, shape: Sequence[int]) -> Expr:
    """Allocate a float32 buffer in the innermost sblock."""
    buffer = T.sblock_alloc_buffer([index(extent) for extent in shape], DTYPE, layout=None)
    IRBuilder.name(name, buffer)
    return buffer


def registers(name: str, elements: int) -> Expr:
    """Allocate a float32 buffer that LLVM can promote to registers: a stack slot, accessed at constant offsets.

    TVM keeps an allocation on the stack only in ``global`` scope and below 1 KiB; else (``local`` too) it comes from a
    heap that LLVM cannot see through: it would keep the values in registers in the loop, but store them when the
    function ends, so that they stay live and crowd out the next tile's.
    """
    assert elements * 4 < 1024
    buffer = T.alloc_buffer([index(elements)], DTYPE, layout=None)
    IRBuilder.name(name, buffer)
    return buffer


def region(*bounds: tuple[Expr, int]) -> tuple[slice, ...]:
    """Slices ``start : start + extent`` for ``T.reads`` and ``T.writes``."""
    return tuple(slice(start, start + extent) for start, extent in bounds)


def whole(buffer: Expr) -> tuple[slice, ...]:
    """The full region of a buffer, for ``T.reads`` and ``T.writes``."""
    return tuple(slice(index(0), extent) for extent in buffer.shape)


def ramp(start: Expr, lanes: int) -> Expr:
    """Indices of ``lanes`` consecutive elements; TVM has no vectors of one lane."""
    return tirx.Ramp(start, index(1), lanes) if lanes > 1 else start


def broadcast(value: Expr, lanes: int) -> Expr:
    """``value`` in all of ``lanes``."""
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def prefetch(buffer: Expr, indices: Sequence[Expr]) -> None:
    """Ask for the cache line of an element that will be read later; into L2, on any processor that knows how."""
    address = tirx.address_of(tirx.BufferLoad(buffer, list(indices)))
    # For reading, of medium locality, data.
    hints = (tirx.const(value, "int32") for value in (0, 2, 1))
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, *hints))


def every_second(first: Expr, last: Expr, lanes: int) -> Expr:
    """Elements 0, 2, 4 … of a row, ``lanes`` of them, from its elements from 0 on and from ``lanes - 1`` on.

    Not from ``lanes`` on: the element behind the last one wanted may not exist.
    """
    return tirx.Shuffle([first, last], [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)])


@dataclass(frozen=True)
class TileShape:
    """Accumulators of a register tile: ``rows`` broadcast operands times ``vectors`` vector operands."""

    rows: int
    vectors: int

    def cycles_per_step(self) -> float:
        """Model of one reduction step: two multiply-adds and two loads a cycle, four cycles of latency."""
        return max(self.rows * self.vectors / 2, (self.rows + self.vectors) / 2, 4.0)


def tile_shapes(vector: FloatVector, max_rows: int) -> list[TileShape]:
    """Tile shapes that fit the register file: accumulators, one step's vectors, a broadcast and a product."""
    shapes = []
    for vectors in range(1, 9):
        rows = min(max_rows, (vector.registers - 2 - vectors) // vectors)
        shapes += [TileShape(r, vectors) for r in range(1, rows + 1)]
    return shapes


def register_tile(
    shape: TileShape,
    lanes: int,
    depth: int | Sequence[int],
    load_scalar: Callable[[Expr, int], Expr],
    load_vector: Callable[[Expr, int], Expr],
    store: Callable[[int, int, Expr], None],
) -> None:
    """Emit ``store(r, v, sum_k load_scalar(k, r) * load_vector(k, v))`` for every accumulator of the tile.

    ``depth`` may be several extents, of nested loops over one index k.
    """
    vector_dtype = f"{DTYPE}x{lanes}"
    accumulators = [registers(f"accumulators_{row}", shape.vectors * lanes) for row in range(shape.rows)]
    cells = [(row, vector) for row in range(shape.rows) for vector in range(shape.vectors)]
    for row, vector in cells:
        zero = broadcast(tirx.const(0, DTYPE), lanes)
        T.buffer_store(accumulators[row], zero, [ramp(index(vector * lanes), lanes)])
    with ExitStack() as nest:
        k: Expr = index(0)
        for extent in (depth,) if isinstance(depth, int) else depth:
            k = k * extent + nest.enter_context(serial(extent))
        vectors = [T.Bind(load_vector(k, vector)) for vector in range(shape.vectors)]
        for row in range(shape.rows):
            # Bound next to its use: bound together, all the broadcasts would be live at once and spill.
            scalar = T.Bind(broadcast(load_scalar(k, row), lanes))
            for vector in range(shape.vectors):
                lane = index(vector * lanes)
                total = accumulators[row].vload([lane], vector_dtype) + scalar * vectors[vector]
                T.buffer_store(accumulators[row], total, [ramp(lane, lanes)])
    for row, vector in cells:
        store(row, vector, accumulators[row].vload([index(vector * lanes)], vector_dtype))
