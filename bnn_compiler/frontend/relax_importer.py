"""From a normalised ONNX graph to one Relax function, with a map from Relax variables back to ONNX.

TVM's importer does the conversion of single operators; this module drives it, because TVM's own driver

- leaves an operator that becomes one Relax call unbound until something uses it, so that results have no names;
- lowers ``Pad`` and ``Clip`` to ``call_tir`` at once, where no pattern can see what they are;
- keeps constant subexpressions it creates itself (a bias reshaped, a weight transposed) as calls;
- prints to standard output, and raises whatever a converter raises.

Module attributes written here, both JSON objects:

``bnnc.names``
    Relax variable name -> ``{"node", "op", "output"}``. ``output`` is the name of the ONNX tensor that the variable
    holds, or null for an inner result of the node: the ``conv2d`` of a ``Conv`` with bias, whose tensor is the ``add``.
``bnnc.inputs``
    Relax parameter name -> ONNX input name, in order.
"""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import tvm
from onnx import AttributeProto, GraphProto, NodeProto
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import describe_node

NAMES_ATTRIBUTE = "bnnc.names"
INPUTS_ATTRIBUTE = "bnnc.inputs"

_BUILDER_NAME = re.compile(r"(lv|gv)\d*(_\d+)?")
"""Names that the block builder gives to variables; it does not avoid the parameters' own."""


def import_graph(model: onnx.ModelProto, opset: int) -> tvm.IRModule:
    """The module of a normalised model (static shapes, no subgraphs, only operators of the converter map).

    Raises:
        UnsupportedOperatorError: a converter refuses a form of its operator; the message names the node.
        ModelError: the assembled function is not well-formed.
    """
    importer = _GraphImporter()
    with warnings.catch_warnings():
        # The converters' warnings are about names and performance; what matters is said in our own words.
        warnings.simplefilter("ignore")
        try:
            module = importer.from_onnx(model.graph, opset)
        except Exception as error:  # TVM raises many types here; none of them is ours, all mean the same
            raise ModelError(f"TVM cannot assemble the graph: {_telling_line(error)}") from error
    if importer.failure is not None:
        raise importer.failure
    inputs = {
        str(parameter.name): name for parameter, name in zip(module["main"].params, importer.input_names, strict=True)
    }
    module = module.with_attr(NAMES_ATTRIBUTE, json.dumps(importer.variable_names(module["main"])))
    return module.with_attr(INPUTS_ATTRIBUTE, json.dumps(inputs))


class _GraphImporter(ONNXGraphImporter):  # type: ignore[misc]  # the base is untyped
    """TVM's importer with every node's results bound, and the bindings remembered."""

    def __init__(self) -> None:
        super().__init__(shape_dict={}, dtype_dict={})
        self._results: list[tuple[NodeProto, list[tuple[str, str]]]] = []
        self._graph_outputs: list[str] = []
        self.failure: ModelError | None = None

    @property
    def input_names(self) -> list[str]:
        """ONNX names of the parameters, in order."""
        return [str(name) for name in self._input_names]

    def variable_names(self, function: Any) -> dict[str, dict[str, str | None]]:
        """The content of ``bnnc.names``, read off the finished function.

        A node's bindings are emitted together and end with its results. So walking the bindings in order, each one
        belongs to the first node whose last result is not behind it.
        """
        bindings = [str(binding.var.name) for block in function.body.blocks for binding in block.bindings]
        position = {name: index for index, name in enumerate(bindings)}
        names: dict[str, dict[str, str | None]] = {}
        start = 0
        for node, results in self._results:
            end = max((position[variable] + 1 for variable, _ in results), default=start)
            tensors = dict(results)
            for variable in bindings[start:end]:
                names[variable] = {"node": node.name, "op": node.op_type, "output": tensors.get(variable)}
            start = max(start, end)
        # What the builder binds last are aliases of the graph's outputs.
        result_of = {tensor: variable for _, results in self._results for variable, tensor in results}
        if len(self._graph_outputs) == 1 and len(bindings) > start and self._graph_outputs[0] in result_of:
            names[bindings[-1]] = names[result_of[self._graph_outputs[0]]]
        return names

    def _sanitize_name(self, name: str) -> str:
        """A unique identifier that cannot collide with the names of bindings."""
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII) or "input"
        if identifier[0].isdigit() or _BUILDER_NAME.fullmatch(identifier):
            identifier = f"input_{identifier}"
        return str(self._name_supply.fresh_name(identifier))

    def _construct_nodes(self, graph: GraphProto) -> None:
        self._graph_outputs = [output.name for output in graph.output]
        for node in graph.node:
            try:
                self._bind_results(node)
            except ModelError as error:
                self.failure = error
            except Exception as error:  # converters raise anything from KeyError to TVM's own errors
                self.failure = UnsupportedOperatorError(
                    f"{describe_node(node)} has a form that cannot be compiled: {_telling_line(error)}"
                )
                self.failure.__cause__ = error
            if self.failure is not None:
                # Raising here would destroy a block builder with open blocks, which TVM's C++ side complains about on
                # standard error. So the function is closed as usual, and import_graph raises.
                any_input = next(iter(self._inputs.values()))
                self._nodes.update(dict.fromkeys(self._graph_outputs, any_input))
                return

    def _bind_results(self, node: NodeProto) -> None:
        """Convert a node and bind each result that has a name."""
        inputs = _ConverterInputs(self._nodes[name] if name else None for name in node.input)
        variables: list[tuple[str, str]] = []
        for tensor, expression in zip(node.output, self._convert_node(node, inputs), strict=False):
            if not tensor:
                continue
            folded = _fold_layout(expression)
            handed_on = any(folded is given or folded.same_as(given) for given in inputs if given is not None)
            if handed_on or isinstance(folded, tvm.ir.GenericConst | relax.ShapeExpr):
                self._nodes[tensor] = folded  # nothing to bind
                continue
            # Some converters bind their result themselves.
            variable = folded if isinstance(folded, relax.Var) else self.bb.emit(folded)
            self._nodes[tensor] = variable
            variables.append((str(variable.name), tensor))
        self._results.append((node, variables))

    def _convert_node(self, node: NodeProto, inputs: _ConverterInputs) -> list[Any]:
        """The Relax expressions of a node's outputs."""
        attributes = self._parse_attr(node.attribute)
        attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output)}
        convert = _OWN_CONVERTERS.get(node.op_type)
        result = convert(self.bb, inputs, attributes) if convert is not None else None
        if result is None:
            converter = _get_convert_map()[node.op_type].get_converter(self.opset)
            result = converter(self.bb, inputs, attributes, [self._nodes, self._params])
        used = sum(1 for tensor in node.output if tensor)
        if not isinstance(result, relax.Tuple) or used > 1:
            # Normalising gives the expression its type, and binds what several results share. For a tuple of which
            # one result is used (batch normalisation) it would bind the others for nothing.
            result = self.bb.normalize(_fold_layout(result))
        if isinstance(result, relax.Tuple):
            results = list(result.fields)
        elif isinstance(getattr(result, "ty", None), relax.TupleType):
            bound = self.bb.emit(result)
            results = [relax.TupleGetItem(bound, index) for index in range(len(bound.ty.fields))]
        else:
            results = [result]
        if len(results) < len(node.output):
            raise UnsupportedOperatorError(
                f"{describe_node(node)} has {len(node.output)} outputs, of which only {len(results)} can be compiled"
            )
        return results

    def _parse_attr(self, attributes: Any) -> dict[str, Any]:
        """As TVM's, but an empty list is a value (``axes=[]``), and the declared type says which field counts."""
        parsed: dict[str, Any] = {}
        for attribute in attributes:
            value = onnx.helper.get_attribute_value(attribute)
            repeated = attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS)
            parsed[attribute.name] = tuple(value) if repeated else value
        return parsed


class _ConverterInputs(list[Any]):
    """A node's inputs; reading past the end gives ``None``, as converters expect for optional inputs."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            stop = len(self) if index.stop is None else index.stop
            return [self[i] for i in range(*slice(index.start, stop, index.step).indices(stop))]
        return super().__getitem__(index) if index < len(self) else None


def _convert_pad(_: Any, inputs: _ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Pad`` in constant mode with constant amounts as ``R.nn.pad``; negative amounts crop by a slice first."""
    if attributes.get("mode", b"constant") != b"constant":
        return None
    data = inputs[0]
    rank = len(data.ty.shape.values)
    amounts, value, axes = attributes.get("pads"), attributes.get("value", 0.0), None
    if amounts is None:
        pads, fill, chosen = (_constant_array(inputs[index]) for index in (1, 2, 3))
        if pads is None or (inputs[2] is not None and fill is None) or (inputs[3] is not None and chosen is None):
            return None
        amounts, axes = pads.reshape(-1).tolist(), None if chosen is None else chosen.reshape(-1).tolist()
        value = 0.0 if fill is None else fill.reshape(-1)[0].item()
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    before, after = amounts[: len(axes)], amounts[len(axes) :]
    cropped = [i for i in range(len(axes)) if before[i] < 0 or after[i] < 0]
    if cropped:
        extents = [int(data.ty.shape.values[axes[i]]) for i in cropped]
        data = relax.op.strided_slice(
            data,
            axes=[axes[i] for i in cropped],
            begin=[max(-before[i], 0) for i in cropped],
            end=[extent - max(-after[i], 0) for i, extent in zip(cropped, extents, strict=True)],
        )
    width = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        width[2 * axis], width[2 * axis + 1] = max(before[i], 0), max(after[i], 0)
    return relax.op.nn.pad(data, width, "constant", float(value)) if any(width) or not cropped else data


def _convert_clip(_: Any, inputs: _ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Clip`` with constant bounds as ``R.clip``; an absent bound is the dtype's own limit."""
    data = inputs[0]
    dtype = np.dtype(str(data.ty.dtype))
    bounds: list[float | int] = []
    for index, attribute in ((1, "min"), (2, "max")):
        bound = _constant_array(inputs[index])
        if inputs[index] is not None and (bound is None or bound.size != 1):
            return None
        value = attributes.get(attribute) if bound is None else bound.reshape(-1)[0].item()
        if value is None or np.isnan(value):  # ONNX Runtime takes a NaN bound as none
            limit = np.inf if dtype.kind == "f" else (np.iinfo(dtype).min if index == 1 else np.iinfo(dtype).max)
            value = -limit if dtype.kind == "f" and index == 1 else limit
        bounds.append(float(value) if dtype.kind == "f" else int(value))
    bounds[0] = min(bounds[0], bounds[1])  # ONNX: when min exceeds max, every element becomes max
    return relax.op.clip(data, bounds[0], bounds[1])


def _convert_gemm(_: Any, inputs: _ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Gemm`` with a constant B as ``matmul(A, alpha * B') + beta * C``: constants stay plain constants."""
    weight, bias = _constant_array(inputs[1]), _constant_array(inputs[2])
    if weight is None or (inputs[2] is not None and bias is None) or weight.dtype.kind != "f":
        return None
    data = relax.op.permute_dims(inputs[0], [1, 0]) if attributes.get("transA", 0) else inputs[0]
    weight = weight.T if attributes.get("transB", 0) else weight
    weight = np.ascontiguousarray(weight * weight.dtype.type(attributes.get("alpha", 1.0)))
    product = relax.op.matmul(data, relax.const(weight))
    if bias is None:
        return product
    return relax.op.add(product, relax.const(np.asarray(bias * bias.dtype.type(attributes.get("beta", 1.0)))))


_OWN_CONVERTERS = {"Pad": _convert_pad, "Clip": _convert_clip, "Gemm": _convert_gemm}
"""Each gives ``None`` where the form is left to TVM's converter."""


def _fold_layout(expression: Any) -> Any:
    """Evaluate the layout changes of constants inside an expression that is not bound yet."""
    if not isinstance(expression, relax.Call):
        return expression
    arguments = [_fold_layout(argument) for argument in expression.args]
    name = getattr(expression.op, "name", "")
    if name in _LAYOUT_OPERATORS and isinstance(arguments[0], tvm.ir.GenericConst):
        source, axes = arguments[0].value.numpy(), getattr(expression.attrs, "axes", None)
        if name == "relax.permute_dims":
            folded = source.transpose(None if axes is None else [int(axis) for axis in axes])
            return relax.const(np.asarray(folded, order="C"))
        if name == "relax.reshape" and isinstance(arguments[1], relax.ShapeExpr):
            return relax.const(source.reshape([int(extent) for extent in arguments[1].values]))
    if all(new is old for new, old in zip(arguments, expression.args, strict=True)):
        return expression
    return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)


_LAYOUT_OPERATORS = frozenset({"relax.reshape", "relax.permute_dims"})


def _constant_array(expression: Any) -> npt.NDArray[Any] | None:
    """The value of a constant input; ``None`` for absent and for computed inputs."""
    if isinstance(expression, tvm.ir.GenericConst):
        array: npt.NDArray[Any] = expression.value.numpy()
        return array
    return None


def _telling_line(error: BaseException) -> str:
    """The telling line of an error: TVM's texts end with it, after a backtrace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
