"""From a normalised ONNX graph to one Relax function, with a map from Relax variables back to ONNX.

TVM's importer does the conversion of single operators; this module drives it, because TVM's own driver

- leaves an operator that becomes one Relax call unbound until something uses it, so that results have no names;
- lowers ``Pad`` and ``Clip`` to ``call_tir`` at once, where no pattern can see what they are;
- keeps constant subexpressions it creates itself (a bias reshaped, a weight transposed) as calls;
- prints to standard output, and raises whatever a converter raises.

The map is in the module attributes ``bnnc.names`` and ``bnnc.inputs``: ``module_attributes`` says what they hold.
"""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import onnx
import tvm
from onnx import AttributeProto, GraphProto, NodeProto, TypeProto
from tvm import relax, tirx
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.module_attributes import INPUTS_ATTRIBUTE, NAMES_ATTRIBUTE

from .onnx_graph import TENSOR_DTYPES, describe_node, static_shape, tensor_types
from .operator_converters import OWN_CONVERTERS, ConverterInputs, fold_layout

_BUILDER_NAME = re.compile(r"(lv|gv)\d*(_.*)?")
"""Names of the block builder and what passes make of them; it does not avoid the parameters' own."""


def import_graph(model: onnx.ModelProto, opset: int) -> tvm.IRModule:
    """The module of a normalised model (static shapes, no subgraphs, only operators of the converter map).

    Raises:
        UnsupportedOperatorError: a converter refuses a form of its operator; the message names the node.
        ModelError: the assembled function is not well-formed.
    """
    # Without these, TVM takes a dimension of 0 as an unknown one.
    shapes = {info.name: static_shape(info.type) for info in model.graph.input}
    importer = _GraphImporter({name: list(shape) for name, shape in shapes.items() if shape is not None})
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

    def __init__(self, input_shapes: dict[str, list[int]]) -> None:
        super().__init__(shape_dict=input_shapes, dtype_dict={})
        self._results: list[tuple[NodeProto, list[tuple[str, str]]]] = []
        self._graph_outputs: list[str] = []
        self._types: dict[str, TypeProto] = {}
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

    def _check_for_unsupported_ops(self, graph: GraphProto) -> None:
        """``operator_support`` has looked, and knows of the converters that are not TVM's."""

    def _sanitize_name(self, name: str) -> str:
        """A unique identifier that cannot collide with the names of bindings."""
        identifier = re.sub(r"\W", "_", name, flags=re.ASCII) or "input"
        if identifier[0].isdigit() or _BUILDER_NAME.fullmatch(identifier):
            identifier = f"input_{identifier}"
        return str(self._name_supply.fresh_name(identifier))

    def _construct_nodes(self, graph: GraphProto) -> None:
        self._graph_outputs = [output.name for output in graph.output]
        self._types = tensor_types(graph)
        for node in graph.node:
            try:
                self._bind_results(node)
            except ModelError as error:
                self.failure = error
            except Exception as error:  # converters raise anything from KeyError to TVM's own errors
                self.failure = UnsupportedOperatorError(
                    f"{describe_node(node)} has a form that cannot be compiled: {self._refusal(node, error)}"
                )
                self.failure.__cause__ = error
            if self.failure is not None:
                # Raising here would destroy a block builder with open blocks, which TVM's C++ side complains about on
                # standard error. So the function is closed as usual, and import_graph raises.
                any_input = next(iter(self._inputs.values()))
                self._nodes.update(dict.fromkeys(self._graph_outputs, any_input))
                return

    def _refusal(self, node: NodeProto, error: Exception) -> str:
        """What is not supported: a converter's own words, or the node's form where it has none."""
        words = _last_line(error)
        if isinstance(error, _WORDED) and " " in words and not isinstance(error, _UNWORDED):
            return words
        inputs = ", ".join(_describe_operand(self._nodes.get(name)) for name in node.input) or "none"
        return f"inputs {inputs}{_describe_attributes(node)}"

    def _bind_results(self, node: NodeProto) -> None:
        """Convert a node and bind each result that has a name."""
        inputs = ConverterInputs(self._nodes[name] if name else None for name in node.input)
        variables: list[tuple[str, str]] = []
        for tensor, expression in zip(node.output, self._convert_node(node, inputs), strict=False):
            if not tensor:
                continue
            folded = fold_layout(expression)
            handed_on = any(folded is given or folded.same_as(given) for given in inputs if given is not None)
            if handed_on or isinstance(folded, tvm.ir.GenericConst | relax.ShapeExpr):
                self._check_type(node, tensor, folded)
                self._nodes[tensor] = folded  # nothing to bind
                continue
            # Some converters bind their result themselves.
            variable = folded if isinstance(folded, relax.Var) else self.bb.emit(folded)
            self._check_type(node, tensor, variable)
            self._nodes[tensor] = variable
            variables.append((str(variable.name), tensor))
        self._results.append((node, variables))

    def _check_type(self, node: NodeProto, tensor: str, expression: Any) -> None:
        """A converter that computes another shape or type than ONNX infers does not know this form of its operator."""
        declared, computed = self._types.get(tensor), getattr(expression, "ty", None)
        if declared is None or not isinstance(computed, relax.TensorType):
            return
        shape, dtype = static_shape(declared), TENSOR_DTYPES.get(declared.tensor_type.elem_type)
        known = isinstance(computed.shape, relax.ShapeExpr)
        extents = [extent for extent in computed.shape.values if isinstance(extent, tirx.IntImm)] if known else []
        if not known or len(extents) < len(computed.shape.values):
            # Shape inference believes what the file declares of an output.
            raise UnsupportedOperatorError(
                f"{describe_node(node)}: the shape of its output {tensor!r} depends on data, which is not supported: "
                "shapes must be constant"
            )
        if shape is None:
            return
        found = tuple(int(extent) for extent in extents)
        if (found, str(computed.dtype)) != (shape, dtype):
            raise UnsupportedOperatorError(
                f"{describe_node(node)} has a form that cannot be compiled: its output {tensor!r} would be "
                f"{computed.dtype}{list(found)}, and not {dtype}{list(shape)}"
            )

    def _convert_node(self, node: NodeProto, inputs: ConverterInputs) -> list[Any]:
        """The Relax expressions of a node's outputs."""
        attributes = self._parse_attr(node.attribute)
        attributes["tvm_custom"] = {"name": node.name, "num_outputs": len(node.output), "opset": self.opset}
        convert = OWN_CONVERTERS.get(node.op_type)
        result = convert(self.bb, inputs, attributes) if convert is not None else None
        if result is None:
            converter = _get_convert_map()[node.op_type].get_converter(self.opset)
            result = converter(self.bb, inputs, attributes, [self._nodes, self._params])
        used = sum(1 for tensor in node.output if tensor)
        if not isinstance(result, relax.Tuple) or used > 1:
            # Normalising gives the expression its type, and binds what several results share. For a tuple of which
            # one result is used (batch normalisation) it would bind the others for nothing.
            result = self.bb.normalize(fold_layout(result))
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


_WORDED = (ValueError, NotImplementedError, AssertionError, RuntimeError)
"""Errors by which converters refuse a form, with a sentence."""

_UNWORDED = (tvm.error.InternalError, UnicodeError)
"""Those among their children that speak of code."""


def _last_line(error: BaseException) -> str:
    """The telling line of an error: TVM's texts end with it, after a backtrace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def _telling_line(error: BaseException) -> str:
    line = _last_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _describe_operand(expression: Any) -> str:
    """``float32[1, 3]``, with ``constant`` in front of one; ``absent``."""
    if expression is None:
        return "absent"
    kind = getattr(expression, "ty", None)
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        return "a shape"
    constant = "constant " if isinstance(expression, tvm.ir.GenericConst) else ""
    return f"{constant}{kind.dtype}{[int(extent) for extent in kind.shape.values]}"


def _describe_attributes(node: NodeProto) -> str:
    """The attributes as the model has them, each cut to a line's part."""
    texts = []
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        texts.append(f"{attribute.name} = {text[:60]}")
    return f"; {', '.join(texts)}" if texts else ""
