"""What must hold of a loaded model before anything else is done with it.

1. IR version and operator-set version are known here.
2. There are inputs and outputs, dense tensors of a compiled element type, each named once.
3. Every operator can be converted (:mod:`bnn_compiler.frontend.operator_support` says which), or is replaced by
   standard ones later (:mod:`bnn_compiler.frontend.node_lowering`).
4. Nodes can be ordered: every tensor has one source, and there is no cycle.
5. ONNX's own checker agrees: attributes, operand counts, names.
6. No required operand of a node is left empty: converters would dereference it.
7. ``Split`` has as many outputs as it says, and ``GatherND`` no negative ``batch_dims``: ONNX's shape inference (1.23)
   reads out of bounds otherwise, and takes the process with it.

Shapes come later, once those of the inputs are known.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, ValueInfoProto

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .node_lowering import import_custom_domains
from .node_order import sort_nodes
from .onnx_graph import ONNX_DOMAINS, TENSOR_DTYPES, all_nodes, describe_node, dtype_name, integer_attribute
from .operator_support import check_operators

OLDEST_OPSET = 7
"""Before it, binary operators had an ``axis`` attribute in place of NumPy's broadcasting."""


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that the model uses.

    Raises:
        ModelError: condition 1 does not hold.
    """
    if not 3 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"the ONNX IR version {model.ir_version} is not supported (3 to {onnx.IR_VERSION} are): "
            "export the model again"
        )
    versions = {entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS}
    if len(versions) != 1:
        raise ModelError(f"the model names {len(versions)} versions of the standard operator set; there must be one")
    version = versions.pop()
    newest = int(onnx.defs.onnx_opset_version())
    if not OLDEST_OPSET <= version <= newest:
        raise ModelError(
            f"the ONNX operator set {version} is not supported ({OLDEST_OPSET} to {newest} are): "
            "export the model with another opset version"
        )
    return int(version)


def check_graph(model: onnx.ModelProto) -> bool:
    """Conditions 2 to 7; sorts the nodes in place, and says whether that moved any.

    Raises:
        ModelError: a condition does not hold.
        UnsupportedOperatorError: condition 3 does not hold.
    """
    graph = model.graph
    _unify_standard_domain(model)
    import_custom_domains(model)
    _check_border("input", list(graph.input))
    _check_border("output", list(graph.output))
    _check_initializers(model)
    check_operators(model)
    moved = sort_nodes(model)
    available = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    available |= {name for node in graph.node for name in node.output}
    for output in graph.output:
        if output.name not in available:
            raise ModelError(f"nothing computes the graph's output {output.name!r}")
    _run_checker(model)
    nodes = all_nodes(graph)
    _check_required_inputs(nodes, standard_opset(model))
    _check_what_crashes_inference(nodes)
    return moved


def _unify_standard_domain(model: onnx.ModelProto) -> None:
    """The standard domain has two spellings; keep the empty one."""
    for entry in (*model.opset_import, *all_nodes(model.graph)):
        if entry.domain in ONNX_DOMAINS and entry.domain:
            entry.domain = ""


def _run_checker(model: onnx.ModelProto) -> None:
    """Condition 5."""
    # The checker insists on a shape at the graph's border, where ONNX Runtime takes none for an unknown rank, and so
    # does this front end: the shape is inferred, or given by the user.
    unknown = [
        info for info in (*model.graph.input, *model.graph.output) if not info.type.tensor_type.HasField("shape")
    ]
    for info in unknown:
        info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # ValidationError, but also RuntimeError and ValueError from the C++ side
        raise ModelError(f"not a valid ONNX model: {checker_cause(error)}") from error
    for info in unknown:
        info.type.tensor_type.ClearField("shape")


def _check_required_inputs(nodes: list[NodeProto], opset: int) -> None:
    """Condition 6. The checker counts the inputs, but lets an empty name stand for a required one."""
    for node in nodes:
        if node.domain:
            continue  # its lowering knows
        formal = onnx.defs.get_schema(node.op_type, opset, "").inputs
        for index, name in enumerate(node.input):
            option = formal[min(index, len(formal) - 1)].option
            if not name and option != onnx.defs.OpSchema.FormalParameterOption.Optional:
                raise ModelError(f"{describe_node(node)} lacks its input number {index + 1}")


def _check_what_crashes_inference(nodes: list[NodeProto]) -> None:
    """Condition 7."""
    for node in nodes:
        if node.op_type == "Split":
            stated = integer_attribute(node, "num_outputs", len(node.output))
            if stated != len(node.output):
                raise ModelError(f"{describe_node(node)} has num_outputs {stated}, but {len(node.output)} outputs")
        elif node.op_type == "GatherND" and integer_attribute(node, "batch_dims", 0) < 0:
            raise ModelError(f"{describe_node(node)} has negative batch_dims")


def _check_border(kind: str, infos: list[ValueInfoProto]) -> None:
    """Condition 2 for the graph's inputs or outputs."""
    if not infos:
        raise ModelError(f"the model has no {kind}s")
    names: set[str] = set()
    for info in infos:
        if not info.name:
            raise ModelError(f"the model has {'an' if kind[0] in 'io' else 'a'} {kind} without a name")
        if info.name in names:
            raise ModelError(f"the {kind} {info.name!r} is listed twice")
        names.add(info.name)
        form = info.type.WhichOneof("value")
        if form != "tensor_type":
            found = "no type" if form is None else f"a {form.removesuffix('_type').replace('_', ' ')}"
            raise UnsupportedOperatorError(f"the {kind} {info.name!r} is {found}; only dense tensors are supported")
        element_type = info.type.tensor_type.elem_type
        if element_type not in TENSOR_DTYPES:
            raise UnsupportedOperatorError(
                f"the {kind} {info.name!r} has the element type {dtype_name(element_type)}, which is not supported "
                f"(supported: {', '.join(sorted(TENSOR_DTYPES.values()))})"
            )


def _check_initializers(model: onnx.ModelProto) -> None:
    names: set[str] = set()
    for tensor in model.graph.initializer:
        if not tensor.name:
            raise ModelError("the model has an initializer without a name")
        if tensor.name in names:
            raise ModelError(f"the initializer {tensor.name!r} is listed twice")
        names.add(tensor.name)


def checker_cause(error: Exception) -> str:
    """ONNX's message as one line, without the context it repeats."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if not line.startswith("==> Context")]
    context = [line.removeprefix("==> Context:").strip() for line in lines if line.startswith("==> Context")]
    return " ".join([*causes[:2], *(f"({line})" for line in context[:1])])[:400]
