"""The stages from an ONNX file to a Relax module, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from types import MappingProxyType

import onnx

from bnn_compiler.errors import BnncError, ModelError
from bnn_compiler.limits import DEFAULT_LIMITS, Limits
from bnn_compiler.tensor_spec import TensorSpec

from .few_bit_types import widen_few_bit_types
from .graph_check import check_graph, standard_opset
from .half_precision import widen_half_precision
from .imported_model import ImportedModel
from .index_limits import index_limits
from .local_functions import inline_local_functions
from .model_file import Source, load_model, source_name
from .normalisation import normalise
from .onnx_graph import TENSOR_DTYPES, static_shape
from .relax_importer import import_graph

LONGEST_MESSAGE = 1000
"""Characters; what is longer loses its middle."""

_NO_SHAPES: Mapping[str, tuple[int, ...]] = MappingProxyType({})


def import_onnx(
    model: Source,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] = _NO_SHAPES,
    open_dimension: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> ImportedModel:
    """Check, normalise and import an ONNX model.

    Args:
        model: the path of a model (external data is looked for in its directory only), its bytes, or a proto, which is
            not changed.
        input_shapes: a shape for each input whose dimensions the file leaves open. An open first dimension that is not
            given here is 1.
        open_dimension: what any other open dimension is taken as, with a note; ``None`` refuses them.
        limits: how large the model may be.

    Raises:
        ModelError: the model is unreadable, invalid, contradicts itself, exceeds a limit or does not fit into memory.
        UnsupportedOperatorError: an operator, or a form of one, cannot be compiled; the message names its node.
        UsageError: ``input_shapes`` does not fit the model.
        OpenShapeError: a dimension is left open.

    Every message is one line and starts with the model's name.
    """
    label = source_name(model)
    try:
        return _import(model, input_shapes, open_dimension, limits, PurePath(label).stem or label)
    except BnncError as error:
        raise type(error)(_one_line(f"{label}: {error}")) from error
    except MemoryError as error:
        raise ModelError(f"{_one_line(label)}: there is not enough memory to import the model") from error


def _import(
    source: Source, input_shapes: Mapping[str, tuple[int, ...]], open_dimension: int | None, limits: Limits, name: str
) -> ImportedModel:
    model = load_model(source, limits)
    opset = standard_opset(model)
    model = inline_local_functions(model, opset, limits)
    notes = ["the nodes were not in order, and have been sorted"] if check_graph(model) else []
    widen_few_bit_types(model)
    notes += widen_half_precision(model)
    choices = normalise(model, opset, input_shapes, open_dimension, limits)
    indices = index_limits(model)
    return ImportedModel(
        name=name,
        module=import_graph(model, opset),
        onnx_model=model,
        inputs=tuple(replace(_spec(info), limit=indices.get(info.name)) for info in model.graph.input),
        outputs=tuple(_spec(info) for info in model.graph.output),
        notes=(*notes, *choices),
    )


def _one_line(text: str) -> str:
    """Names in a model may hold line breaks and control characters, and be long; a message does not pass that on."""
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE // 2]} … {line[-LONGEST_MESSAGE // 2 :]}"


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    shape = static_shape(info.type)
    if shape is None:
        raise ModelError(f"the shape of {info.name!r} is not known")
    return TensorSpec(info.name, shape, TENSOR_DTYPES[info.type.tensor_type.elem_type])
