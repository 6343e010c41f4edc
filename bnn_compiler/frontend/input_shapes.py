"""Which shape each graph input has: from the file, from ``--input-shape``, or 1 for an open batch dimension.

Rules, in this order, for every dimension:

1. a shape given by the user counts; where the file has a number, both must agree;
2. a symbol (``batch``, ``H``) that got a number anywhere has it everywhere;
3. an open first dimension is the batch: 1, with a note;
4. any other open dimension is what the caller proposes, with a note, or else an error that shows the option to write.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import ValueInfoProto

from bnn_compiler.errors import ModelError, OpenShapeError, UsageError

from .onnx_graph import MAX_RANK

_Dimensions = list[int | str | None]
"""A number, the name of a symbol, or nothing known."""


def fix_input_shapes(
    model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]], open_dimension: int | None = None
) -> list[str]:
    """Write a number into every dimension of every graph input, in place; the notes for the user.

    ``open_dimension`` is the caller's proposal of rule 4.

    Raises:
        UsageError: ``input_shapes`` names an unknown input or contradicts the file.
        OpenShapeError: a dimension is left open.
        ModelError: an input has a zero dimension or too many of them.
    """
    inputs = {info.name: info for info in model.graph.input}
    for name in input_shapes:
        if name not in inputs:
            raise UsageError(f"the model has no input {name!r} to give a shape to (its inputs: {_listing(inputs)})")
    declared = {name: _declared(info, input_shapes.get(name)) for name, info in inputs.items()}
    symbols: dict[str, int] = {}
    for name, shape in input_shapes.items():
        _apply(name, declared[name], shape, symbols)
    notes: list[str] = []
    for name, dimensions in declared.items():
        _substitute(dimensions, symbols)
        if dimensions and not isinstance(dimensions[0], int):
            symbol, dimensions[0] = dimensions[0], 1
            if symbol is not None:
                symbols[symbol] = 1
            notes.append(
                f"the open batch dimension of input {name!r} is taken as 1: "
                f"--input-shape {name}={_example(dimensions, 'N')} chooses another"
            )
    for name, dimensions in declared.items():
        _substitute(dimensions, symbols)
        if open_dimension is not None and any(not isinstance(dimension, int) for dimension in dimensions):
            shown, example = _show(dimensions), _example(dimensions, "1")
            dimensions[:] = [size if isinstance(size, int) else open_dimension for size in dimensions]
            notes.append(
                f"the open dimensions of input {name!r}, {shown}, are taken as {open_dimension}: "
                f"--input-shape {name}={example} chooses others"
            )
        if any(not isinstance(dimension, int) for dimension in dimensions):
            raise OpenShapeError(
                f"input {name!r} has the shape {_show(dimensions)}, and every dimension must be known: "
                f"give it with --input-shape {name}={_example(dimensions, '1')}"
            )
        _write(inputs[name], [dimension for dimension in dimensions if isinstance(dimension, int)])
    return notes


def _declared(info: ValueInfoProto, given: tuple[int, ...] | None) -> _Dimensions:
    """The dimensions of one input as the file has them; all open where the file does not even know the rank."""
    tensor_type = info.type.tensor_type
    if not tensor_type.HasField("shape"):
        if given is None:
            raise OpenShapeError(
                f"input {info.name!r} has no shape in the file: give it with --input-shape {info.name}=1,..."
            )
        return [None] * len(given)
    if len(tensor_type.shape.dim) > MAX_RANK:
        raise ModelError(
            f"input {info.name!r} has {len(tensor_type.shape.dim)} dimensions; at most {MAX_RANK} are supported"
        )
    dimensions: _Dimensions = []
    for dim in tensor_type.shape.dim:
        if dim.dim_value < -1:
            raise ModelError(f"input {info.name!r} has the negative dimension {dim.dim_value}")
        # Some exporters write -1 for a dimension that is not known.
        known = dim.HasField("dim_value") and dim.dim_value >= 0
        dimensions.append(dim.dim_value if known else dim.dim_param or None)
    return dimensions


def _apply(name: str, dimensions: _Dimensions, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    """Rule 1."""
    if len(shape) != len(dimensions) or len(shape) > MAX_RANK:
        raise UsageError(
            f"the shape {_show(list(shape))} given for input {name!r} has {len(shape)} dimensions, "
            f"but the model's is {_show(dimensions)}"
        )
    for axis, (given, found) in enumerate(zip(shape, dimensions, strict=True)):
        if given < 1 and given != found:
            raise UsageError(f"the shape {_show(list(shape))} given for input {name!r} has a dimension below 1")
        expected = symbols.get(found, given) if isinstance(found, str) else given if found is None else found
        if given != expected:
            raise UsageError(
                f"the shape {_show(list(shape))} given for input {name!r} contradicts the model, "
                f"whose dimension {axis} is {expected}"
            )
        if isinstance(found, str):
            symbols[found] = given
        dimensions[axis] = given


def _substitute(dimensions: _Dimensions, symbols: Mapping[str, int]) -> None:
    """Rule 2."""
    for axis, dimension in enumerate(dimensions):
        if isinstance(dimension, str) and dimension in symbols:
            dimensions[axis] = symbols[dimension]


def _write(info: ValueInfoProto, shape: list[int]) -> None:
    info.type.tensor_type.ClearField("shape")
    info.type.tensor_type.shape.SetInParent()  # rank 0 is a shape without dimensions, not an absent shape
    for extent in shape:
        info.type.tensor_type.shape.dim.add().dim_value = extent


def _show(dimensions: _Dimensions) -> str:
    return "[" + ", ".join("?" if dimension is None else str(dimension) for dimension in dimensions) + "]"


def _example(dimensions: _Dimensions, first: str) -> str:
    """The shape as one would type it, with ``first`` for the batch."""
    texts = [str(dimension) if isinstance(dimension, int) else "..." for dimension in dimensions]
    if first == "N" or not (dimensions and isinstance(dimensions[0], int)):
        texts[:1] = [first]
    return ",".join(texts)


def _listing(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in list(names)[:10]) or "none"
