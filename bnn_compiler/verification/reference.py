"""ONNX Runtime as the reference of verification and the peer of benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from bnn_compiler.errors import ModelError
from bnn_compiler.tensor_spec import TensorSpec

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

# The smallest value that no flush of subnormals takes away, with room to spare.
_TINY = float(2.0**-100)


class Reference:
    """A model in ONNX Runtime; single-threaded unless asked otherwise, so that its results repeat.

    With ``optimise=False`` every node runs as written: values of inner tensors then do not depend on which of them
    are looked at (a fused Conv + BatchNormalization has no value between the two).

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """

    def __init__(
        self, model: ModelProto | bytes, *, optimise: bool = True, threads: int = 1, profile: str | None = None
    ) -> None:
        """Create the session; with ``profile`` it notes each node's times, for ``end_profiling``.

        ``profile`` is a path; the file's name begins with it.
        """
        options = onnxruntime.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Products of uint8 and int8 are exact on processors without VNNI, too, where sums of two saturate at 16 bits
        # otherwise; the optimiser does this.
        options.add_session_config_entry("session.x64quantprecision", "1")
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no common root of their own.
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on ``feeds`` and return every output by name.

        Raises:
            ModelError: ONNX Runtime fails.
        """
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
        return dict(zip(self.outputs, (cast(Array, value) for value in values), strict=True))

    def end_profiling(self) -> str:
        """Write the profile that was asked for and return the file's path."""
        return str(self._session.end_profiling())


def expose(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Copy ``model`` with inner ``tensors`` as further outputs; graph inputs and outputs among them are left out."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    present = {value.name for value in (*graph.input, *graph.output)} | {value.name for value in graph.initializer}
    known = {value.name: value for value in graph.value_info}
    for name in dict.fromkeys(tensors):
        if name not in present:
            # Without a type where none is known: ONNX Runtime infers it.
            graph.output.append(known.get(name) or ValueInfoProto(name=name))
    return copy


def take_zero_as_plus_one(model: ModelProto, tensors: Collection[str]) -> ModelProto:
    """Copy ``model`` so that ``Sign`` of the named tensors gives +1 where they are zero (of either sign).

    This is the rule ``--sign-zero plus`` in ONNX's own terms: a tiny positive value stands for zero. Zeros of a pad
    stay zeros, in the network and so here: of a padded tensor, what is padded gets the tiny value.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    known = (*copy.graph.input, *copy.graph.value_info, *copy.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in known}
    nodes: list[NodeProto] = []
    padded = pads_of(model, tensors)
    for index, node in enumerate(copy.graph.node):
        sign = node.op_type == "Sign" and node.input[0] in tensors and node.input[0] not in padded
        if sign or node.output[0] in padded:
            prefix = f"bnnc_sign_zero_{index}"
            source = node.input[0]
            tiny, nonzero, test, chosen = (f"{prefix}_{what}" for what in ("tiny", "nonzero", "test", "value"))
            copy.graph.initializer.append(helper.make_tensor(tiny, types.get(source, TensorProto.FLOAT), [], [_TINY]))
            # Every operator set can cast to bool, but only those from 11 on compare floats for equality.
            nodes.append(helper.make_node("Cast", [source], [nonzero], name=nonzero, to=TensorProto.BOOL))
            nodes.append(helper.make_node("Not", [nonzero], [test], name=test))
            nodes.append(helper.make_node("Where", [test, tiny, source], [chosen], name=chosen))
            node.input[0] = chosen
        nodes.append(node)
    rewritten = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(rewritten)
    return copy


def pads_of(model: ModelProto, tensors: Collection[str]) -> dict[str, str]:
    """What is padded, for those of ``tensors`` that a ``Pad`` makes."""
    return {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Pad" and node.output[0] in tensors
    }


def extract(model: ModelProto, source: str, target: str, source_shape: Sequence[int]) -> ModelProto:
    """Return the part of ``model`` that computes tensor ``target`` from tensor ``source`` (float32) and constants.

    Raises:
        ValueError: ``target`` depends on another input of the model than ``source``.
    """
    producers = {output: node for node in model.graph.node for output in node.output if output}
    initializers = {value.name: value for value in model.graph.initializer}
    inputs = {value.name for value in model.graph.input} - initializers.keys()
    needed: set[str] = set()
    used: set[int] = set()
    pending = [target]
    while pending:
        name = pending.pop()
        if name == source or name in needed or not name:
            continue
        needed.add(name)
        if name in inputs:
            raise ValueError(f"{target!r} depends on the input {name!r}, not on {source!r} alone")
        node = producers.get(name)
        if node is not None:
            used.add(id(node))
            pending.extend(node.input)
    types = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    graph = helper.make_graph(
        [node for node in model.graph.node if id(node) in used],
        "layer",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, list(source_shape))],
        [types.get(target) or helper.make_tensor_value_info(target, TensorProto.FLOAT, None)],
        [value for name, value in initializers.items() if name in needed],
    )
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def sample_feeds(inputs: Sequence[TensorSpec], seed: int, index: int) -> dict[str, Array]:
    """Random input ``index``: the same for the same seed and specification.

    Float inputs alternate between what networks are trained on: N(0, 1) clipped to [-3, 3] (normalised images) and
    uniform in [0, 1) (raw images). Integer inputs cover 0 to 255 or the type's own smaller range, indices no more than
    what they index; booleans are fair.
    """
    generator = np.random.default_rng((seed, index))
    return {spec.name: _sample(spec, generator, index) for spec in inputs}


def _sample(spec: TensorSpec, generator: np.random.Generator, index: int) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        normal = index % 2 == 0
        values = generator.standard_normal(spec.shape).clip(-3, 3) if normal else generator.random(spec.shape)
        return np.asarray(values, dtype, order="C")
    if dtype.kind == "b":
        return np.asarray(generator.random(spec.shape) < 0.5)
    top = min(255, np.iinfo(dtype).max, spec.limit - 1 if spec.limit else 255)
    return generator.integers(0, top, spec.shape, dtype, endpoint=True)


def node_activation(model: ModelProto, node_name: str) -> str | None:
    """Return the tensor that enters node ``node_name`` as its activations (its first non-constant input)."""
    constants = {value.name for value in model.graph.initializer}
    for node in model.graph.node:
        if node.name == node_name:
            return next((name for name in node.input if name and name not in constants), None)
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
