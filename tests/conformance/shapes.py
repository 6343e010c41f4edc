"""Operators that move, select, repeat and reduce."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from .graph_builder import GraphBuilder, Tensor
from .one_node import RejectedNodeError
from .operands import axis_of, constant_like, number_like, partner, some_axes
from .values import constant_values


def _any(g: GraphBuilder) -> Tensor:
    """A tensor of any kind, mostly floats."""
    return g.pick("f") if g.chance(0.8) else g.pick("fiub")


def _with_axes(g: GraphBuilder, op: str, x: Tensor, axes: list[int] | None, since: int, **attributes: Any) -> Tensor:
    """An operator whose axes were an attribute before the operator set ``since``."""
    if g.opset < since:
        return g.add(op, [x], axes=axes, **attributes)
    return g.add(op, [x, None if axes is None else g.integers(*axes)], **attributes)


def reshape(g: GraphBuilder) -> None:
    """``Reshape`` with 0, -1 and ``allowzero``."""
    x = _any(g)
    style = g.random.randrange(5)
    if style == 0 and x.rank >= 2:
        g.add("Reshape", [x, g.integers(0, -1)])
    elif style == 1 and x.rank >= 3:
        g.add("Reshape", [x, g.integers(0, x.shape[1], -1)])
    elif style == 2:
        g.add("Reshape", [x, g.integers(-1)])
    elif style == 3 and g.opset >= 14 and x.value.size == 0:
        g.add("Reshape", [x, g.integers(0, 3)], allowzero=1)
    else:
        g.reshape(x, g.random.randint(1, 5))


def flatten(g: GraphBuilder) -> None:
    x = _any(g)
    g.add("Flatten", [x], axis=g.choose(None, g.random.randint(0, x.rank)))


def transpose(g: GraphBuilder) -> None:
    x = _any(g)
    order = list(range(x.rank))
    g.random.shuffle(order)
    if g.chance(0.3) and x.rank >= 3:
        order = g.choose([0, *range(2, x.rank), 1], [0, x.rank - 1, *range(1, x.rank - 1)])
    g.add("Transpose", [x], perm=None if g.chance(0.1) else order)


def squeeze(g: GraphBuilder) -> None:
    x = _any(g)
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if not ones:
        raise RejectedNodeError("nothing to squeeze")
    _with_axes(g, "Squeeze", x, None if g.chance(0.2) else g.random.sample(ones, g.random.randint(1, len(ones))), 13)


def unsqueeze(g: GraphBuilder) -> None:
    x = _any(g)
    if x.rank > 4:
        raise RejectedNodeError("rank")
    _with_axes(g, "Unsqueeze", x, g.choose([0], [x.rank], [g.random.randint(0, x.rank)], [-1], [0, 1]), 13)


def expand(g: GraphBuilder) -> None:
    x = _any(g)
    shape = [g.choose(size, 1) if size != 1 else g.choose(1, 2, 3) for size in x.shape]
    if g.chance(0.2):
        shape = [g.choose(1, 2), *shape]
    g.add("Expand", [x, g.integers(*shape)])


def tile(g: GraphBuilder) -> None:
    x = _any(g)
    g.add("Tile", [x, g.integers(*(g.choose(1, 1, 2, 3) for _ in x.shape))])


def concat(g: GraphBuilder) -> None:
    """Two to four tensors, constants and the same tensor among them."""
    x = _any(g)
    axis = axis_of(g, x)
    cut = axis % x.rank

    def fits(other: Tensor) -> bool:
        same = [i for i in range(x.rank) if i != cut]
        return (
            other.value.dtype == x.value.dtype
            and other.rank == x.rank
            and all(other.shape[i] == x.shape[i] for i in same)
        )

    parts = [x]
    for _ in range(g.random.randint(1, 3)):
        if g.chance(0.2):
            shape = tuple(g.choose(1, 2, size) if i == cut else size for i, size in enumerate(x.shape))
            parts.append(g.constant(constant_values(g.random, g.rng, shape, x.value.dtype)))
        else:
            parts.append(g.pick("fiub", fits))
    g.random.shuffle(parts)
    g.add("Concat", parts, axis=axis)


def split(g: GraphBuilder) -> None:
    """Into equal or unequal parts, empty ones at times."""
    x = _any(g)
    axis = axis_of(g, x)
    size = x.shape[axis]
    count = g.random.randint(1, min(4, max(size, 1)))
    cuts = sorted(g.random.randint(0, size) for _ in range(count - 1))
    parts = [end - start for start, end in zip([0, *cuts], [*cuts, size], strict=True)]
    if 0 in parts and g.chance(0.8):
        raise RejectedNodeError("an empty part")
    if g.chance(0.3) and size % count == 0:
        g.add_several("Split", [x], axis=axis, outputs=count, num_outputs=count if g.opset >= 18 else None)
    elif g.opset < 13:
        g.add_several("Split", [x], axis=axis, split=parts, outputs=count)
    else:
        g.add_several("Split", [x, g.integers(*parts)], axis=axis, outputs=count)


def slices(g: GraphBuilder) -> None:
    """Steps of either sign, ends beyond the tensor, negative positions, empty results at times."""
    x = _any(g)
    axes = some_axes(g, x) or [0]
    starts, ends, steps = [], [], []
    for axis in axes:
        size = x.shape[axis] if x.rank else 0
        step = 1 if g.opset < 10 else g.choose(1, 1, 1, 2, 3, -1, -2)
        first, last = sorted((g.random.randint(0, max(size - 1, 0)), g.random.randint(1, max(size, 1))))
        last = max(last, first + 1)
        if step < 0:
            first, last = last - 1, first - 1 if first else -size - 1
        starts.append(first - size if g.chance(0.2) and first < size else first)
        ends.append(2**31 - 1 if step > 0 and g.chance(0.2) else last)
        steps.append(step)
    if g.chance(0.02):
        ends[0] = starts[0]
    if g.opset < 10:
        g.add("Slice", [x], axes=axes, starts=starts, ends=ends)
    else:
        operands = [g.integers(*starts), g.integers(*ends), g.integers(*axes)]
        g.add("Slice", [x, *operands, None if all(step == 1 for step in steps) else g.integers(*steps)])


def gather(g: GraphBuilder) -> None:
    """``Gather``, ``GatherElements`` and ``GatherND`` with constant indices."""
    x = _any(g)
    axis = axis_of(g, x)
    size = x.shape[axis]
    low = 0 if g.opset < 11 else -size
    op = g.choose("Gather", "Gather", "GatherElements", "GatherND")
    dtype = g.choose(np.int64, np.int64, np.int32)
    if op == "Gather":
        indices = g.rng.integers(low, size, g.choose((), (1,), (3,), (size,), (2, 2))).astype(dtype)
        g.add(op, [x, g.constant(indices)], axis=g.choose(None, axis) if axis == 0 else axis)
    elif op == "GatherElements":
        shape = tuple(g.choose(extent, max(extent - 1, 1)) for extent in x.shape)
        g.add(op, [x, g.constant(g.rng.integers(low, size, shape).astype(dtype))], axis=axis)
    else:
        depth = g.random.randint(1, x.rank)
        indices = np.stack([g.rng.integers(0, extent, (3,)) for extent in x.shape[:depth]], axis=-1)
        g.add(op, [x, g.constant(indices.astype(np.int64))])


def scatter(g: GraphBuilder) -> None:
    """``ScatterElements`` and ``ScatterND`` with constant indices and every reduction."""
    x = _any(g)
    axis = axis_of(g, x)
    reduction = (
        None if g.opset < 16 else g.choose(None, "none", "add", "mul", *(("max", "min") if g.opset >= 18 else ()))
    )
    if g.chance(0.5):
        shape = tuple(max(extent - g.choose(0, 1), 1) for extent in x.shape)
        indices = np.argsort(g.rng.random(shape), axis=axis)
        updates = constant_like(g, x, shape) if g.chance(0.5) else None
        if updates is None:
            updates = g.pick("fiub", lambda t: t.shape == shape and t.value.dtype == x.value.dtype)
        op = "Scatter" if g.opset < 11 else "ScatterElements"
        g.add(op, [x, g.constant(indices.astype(np.int64)), updates], axis=axis, reduction=reduction)
        return
    rows = np.argsort(g.rng.random(x.shape[0]))[:2]
    updates = constant_like(g, x, (len(rows), *x.shape[1:]))
    g.add("ScatterND", [x, g.constant(rows.reshape(-1, 1).astype(np.int64)), updates], reduction=reduction)


def pad(g: GraphBuilder) -> None:
    """Every mode, pads of either sign, with and without axes."""
    x = _any(g)
    mode = g.choose(None, "constant", "reflect", "edge", *(("wrap",) if g.opset >= 19 else ()))
    low = -1 if g.chance(0.2) else 0
    if g.opset < 11:
        pads = [g.random.randint(low, 2) for _ in range(2 * x.rank)]
        g.add("Pad", [x], pads=pads, mode=mode, value=g.choose(None, 0.0, 1.0, -1.0))
        return
    axes = None
    if g.opset >= 18 and g.chance(0.3):
        axes = some_axes(g, x) or [0]
    pads = [g.random.randint(low, 2) for _ in range(2 * (x.rank if axes is None else len(axes)))]
    value = number_like(g, x, g.choose(0.0, 1.0, -1.0)) if g.chance(0.5) and mode in (None, "constant") else None
    if value is not None:
        value = g.constant(value.value.reshape(()))
    g.add("Pad", [x, g.integers(*pads), value, None if axes is None else g.integers(*axes)], mode=mode)


def blocks(g: GraphBuilder) -> None:
    """``DepthToSpace`` and ``SpaceToDepth``."""
    x = g.pick_rank(4)
    if g.chance(0.5):
        g.add("DepthToSpace", [x], blocksize=2, mode=None if g.opset < 11 else g.choose(None, "DCR", "CRD"))
    else:
        g.add("SpaceToDepth", [x], blocksize=g.choose(1, 2, 3))


def triangle(g: GraphBuilder) -> None:
    x = _any(g)
    g.add("Trilu", [x, g.choose(None, g.constant(np.int64(g.choose(-1, 0, 1, 2))))], upper=g.choose(None, 0, 1))


def resize(g: GraphBuilder) -> None:
    """``Resize`` and ``Upsample`` in every mode."""
    x = g.pick_rank(4, 4, 3)
    factors = [1.0, 1.0, *(g.choose(1.0, 2.0, 2.0, 3.0, 0.5, 1.5, 0.7) for _ in range(x.rank - 2))]
    mode = g.choose("nearest", "nearest", "linear", "cubic")
    if g.opset < 11:
        mode = "nearest" if mode == "cubic" else mode
        op = "Upsample" if g.opset < 10 else "Resize"
        if g.opset < 9:
            g.add(op, [x], mode=mode, scales=factors)
        else:
            g.add(op, [x, g.constant(np.array(factors, np.float32))], mode=mode)
        return
    attributes: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": g.choose(
            None, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"
        ),
        "nearest_mode": g.choose(None, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
        "cubic_coeff_a": g.choose(None, -0.5),
        "exclude_outside": g.choose(None, 1) if mode == "cubic" else None,
    }
    roi = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
    if g.chance(0.5):
        scales = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else None
        sizes = [*x.shape[:2], *(max(1, int(size * f)) for size, f in zip(x.shape[2:], factors[2:], strict=True))]
        g.add("Resize", [x, roi, scales, g.integers(*sizes)], **attributes)
        return
    if g.opset >= 18 and g.chance(0.3):
        attributes["antialias"] = 1
    g.add("Resize", [x, roi, g.constant(np.array(factors, np.float32))], **attributes)


def sample(g: GraphBuilder) -> None:
    """``GridSample`` on a constant grid, and ``RoiAlign``."""
    x = g.pick_rank(4)
    if g.chance(0.6):
        grid = g.rng.uniform(-1.2, 1.2, (x.shape[0], 3, 2, 2)).astype(x.value.dtype)
        modes = ("bilinear", "nearest", "bicubic") if g.opset < 20 else ("linear", "nearest", "cubic")
        g.add(
            "GridSample",
            [x, g.constant(grid)],
            mode=g.choose(None, *modes),
            padding_mode=g.choose(None, "zeros", "border", "reflection"),
            align_corners=g.choose(None, 0, 1),
        )
        return
    low = g.rng.uniform(0, 2, (3, 2))
    boxes = np.concatenate([low, low + g.rng.uniform(0.5, 3, (3, 2))], axis=1).astype(x.value.dtype)
    rows = g.constant(g.rng.integers(0, max(x.shape[0], 1), 3).astype(np.int64))
    attributes = {"mode": g.choose(None, "avg", "max"), "sampling_ratio": g.choose(None, 1, 2)}
    g.add("RoiAlign", [x, g.constant(boxes), rows], output_height=2, output_width=3, **attributes)


def reduce(g: GraphBuilder) -> None:
    """Every reduction, over some axes, all or none."""
    op = g.random.choices(
        ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"],
        [6, 6, 3, 3, 1, 1, 1, 1, 0.5, 1],
    )[0]
    x = g.pick("fi") if g.chance(0.2) else g.pick("f")
    axes = some_axes(g, x) or None
    if x.rank >= 3 and g.chance(0.4):
        axes = list(range(2, x.rank))
    since = 13 if op == "Sum" else 18
    if axes is None and g.opset >= since and g.chance(0.3):
        _with_axes(g, f"Reduce{op}", x, None, since, noop_with_empty_axes=g.choose(0, 1))
        return
    _with_axes(g, f"Reduce{op}", x, axes, since, keepdims=g.choose(None, 0, 1))


def argmax(g: GraphBuilder) -> None:
    x = g.pick("fi")
    last = None if g.opset < 12 else g.choose(None, 0, 1)
    g.add(g.choose("ArgMax", "ArgMin"), [x], axis=axis_of(g, x), keepdims=g.choose(None, 0, 1), select_last_index=last)


def top(g: GraphBuilder) -> None:
    """``TopK``."""
    x = g.pick("f")
    axis = axis_of(g, x)
    k = g.random.randint(1, max(1, x.shape[axis]))
    if g.opset < 10:
        g.add_several("TopK", [x], k=k, axis=axis, outputs=2)
    else:
        order = {"largest": g.choose(None, 0, 1), "sorted": None} if g.opset >= 11 else {}
        g.add_several("TopK", [x, g.integers(k)], axis=axis, outputs=2, **order)


def cumulate(g: GraphBuilder) -> None:
    x = g.pick("fi")
    axis = g.constant(np.array(axis_of(g, x), g.choose(np.int64, np.int32)))
    g.add("CumSum", [x, axis], exclusive=g.choose(None, 0, 1), reverse=g.choose(None, 0, 1))


def softmax(g: GraphBuilder) -> None:
    x = g.pick("f")
    g.add(g.choose("Softmax", "Softmax", "LogSoftmax", "Hardmax"), [x], axis=g.choose(None, axis_of(g, x)))


def one_hot(g: GraphBuilder) -> None:
    """``OneHot`` of integers."""
    x = g.pick("iu")
    values = g.constant(np.array(g.choose([0, 1], [-1, 1], [1, 0]), g.choose(np.float32, np.float32, np.int32)))
    g.add("OneHot", [x, g.constant(np.int64(g.choose(3, 5, 7))), values], axis=g.choose(None, 0, -1))


def shape_arithmetic(g: GraphBuilder) -> None:
    """Shapes that are computed in the graph, and constants made of them."""
    x = g.pick("f")
    shape = g.add("Shape", [x])
    style = g.random.randrange(5)
    if style == 0:
        g.add("ConstantOfShape", [shape])
    elif style == 1:
        value = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [g.choose(1.0, -1.0, 0.5)])
        filled = g.add("ConstantOfShape", [shape], value=value)
        g.add("Add", [g.add("Cast", [x], to=1), filled])
    elif style == 2:
        size = g.add("Gather", [shape, g.constant(np.int64(0))])
        row = _with_axes(g, "Unsqueeze", size, [0], 13)
        g.add("Reshape", [x, g.add("Concat", [row, g.integers(-1)], axis=0)])
    elif style == 3:
        g.add("Expand", [constant_like(g, x), shape])
    else:
        g.add("Size", [x])


def make(g: GraphBuilder) -> None:
    """``EyeLike`` and ``Range``."""
    if g.chance(0.5):
        x = g.pick_rank(2)
        g.add("EyeLike", [x], k=g.choose(None, -1, 0, 1), dtype=g.choose(None, 1))
    else:
        x = g.pick("f")
        low, high, step = g.choose((0, 5, 1), (3, 0, -1), (0, 1, 2))
        numbers = g.add("Range", [g.constant(np.float32(v)) for v in (low, high, step)])
        column = numbers if x.rank == 0 else number_like(g, x, 0.5)
        g.add("Mul", [x, column])


def branch(g: GraphBuilder) -> None:
    """``If`` with a computed condition, and branches that read the outer graph."""
    x = g.pick("f")
    y = g.pick("f", lambda other: other.value.dtype == x.value.dtype and other.shape == x.shape)
    total = g.add("ReduceSum", [x], keepdims=0)
    condition = g.add("Greater", [total, g.constant(np.zeros((), x.value.dtype))])
    kind = helper.np_dtype_to_tensor_dtype(x.value.dtype)
    bodies = []
    for op, operand in ((g.choose("Relu", "Neg", "Sign"), x), (g.choose("Abs", "Identity"), y)):
        name = g.name("inner")
        node = helper.make_node(op, [operand.name], [name], g.name(op))
        result = helper.make_tensor_value_info(name, kind, x.shape)
        bodies.append(helper.make_graph([node], g.name("branch"), [], [result]))
    node = helper.make_node(
        "If", [condition.name], [g.name("t")], g.name("If"), then_branch=bodies[0], else_branch=bodies[1]
    )
    g.add_node(node, [condition, x, y])


def rare(g: GraphBuilder) -> None:
    """Results whose shapes depend on data: to be refused."""
    x = g.pick("f")
    op = g.choose("NonZero", "Unique", "Compress")
    if op in ("NonZero", "Unique"):
        g.add(op, [x])
    else:
        g.add(op, [x, g.add("Greater", [g.reshape(x, 1), number_like(g, x, 0.0)])])


def fold(g: GraphBuilder) -> None:
    """A constant part: operators between constants."""
    x = g.pick("f")
    c = constant_like(g, x)
    op = g.choose("Neg", "Abs", "Sign", "Exp", "Sqrt", "Sigmoid")
    folded = g.add(op, [c])
    g.add(g.choose("Add", "Mul"), [x, folded])


def join(g: GraphBuilder) -> None:
    """Two views of one tensor meet again."""
    x = g.pick_rank(4, 3, 2)
    axis = x.rank - 1
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    y = g.add("Transpose", [g.add("Transpose", [x], perm=order)], perm=order)
    z = partner(g, y)
    w = g.add("Mul", [y, z])
    if w.shape == x.shape:
        g.add("Concat", [x, w], axis=axis)
