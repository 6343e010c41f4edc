"""Normalisations as means, sums and element-wise operators.

``LpNormalization(x)``
    x / |x|, |x| the 1- or 2-norm along an axis; 0 where |x| is 0, as in ONNX Runtime.
``MeanVarianceNormalization(x)``
    d / sqrt(mean(d²)) with d = x - mean(x), NaN where all x are equal, as in ONNX Runtime. ONNX's own function adds
    10^-9 to the root, and takes mean(x²) - mean(x)², which loses all digits where the mean is large.
``LayerNormalization(x, scale, bias)`` of which the mean or the inverse deviation is used
    i = 1 / sqrt(mean(d²) + epsilon), results d * i * scale + bias, the mean, i. Without them one operator of Relax.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import attribute_value, describe_node, integer_attribute, integers_attribute
from .versioned_operators import emit_reduce


def _lower_lp_normalization(node: NodeProto, emit: NodeEmitter) -> str | None:
    data = node.input[0]
    axis, order = integer_attribute(node, "axis", -1), integer_attribute(node, "p", 2)
    if order not in (1, 2):
        raise ModelError(f"{describe_node(node)} has p = {order}; 1 and 2 are defined")
    rank = emit.rank(data)
    if rank is None:
        return "the rank of its input is not known"
    norm = emit_reduce(emit, f"ReduceL{order}", data, [axis % rank])
    # A zero of norm 0 divided by 1 stays one.
    zero = emit("Equal", norm, emit.scalar(0.0))
    emit.result("Div", data, emit("Where", zero, emit.scalar(1.0), norm))
    return None


def _lower_mean_variance_normalization(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, axes = node.input[0], integers_attribute(node, "axes", [0, 2, 3])
    rank = emit.rank(data)
    if rank is None:
        return "the rank of its input is not known"
    centred, variance, _ = _centred(emit, data, [axis % rank for axis in axes])
    emit.result("Div", centred, emit("Sqrt", variance))
    return None


def _lower_layer_normalization(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, scale = node.input[:2]
    rank = emit.rank(data)
    if rank is None:
        return "the rank of its input is not known"
    axes = list(range(integer_attribute(node, "axis", -1) % rank, rank))
    centred, variance, mean = _centred(emit, data, axes)
    epsilon = attribute_value(node, "epsilon", 1e-5)
    assert isinstance(epsilon, float)
    deviation = emit("Sqrt", emit("Add", variance, emit.scalar(epsilon)))
    inverse = emit("Reciprocal", deviation)
    scaled = emit("Mul", emit("Mul", centred, inverse), scale)
    if len(node.input) > 2 and node.input[2]:
        emit.result("Add", scaled, node.input[2])
    else:
        emit.result("Identity", scaled)
    emit.result("Identity", mean, index=1)
    emit.result("Identity", inverse, index=2)
    return None


def uses_statistics(node: NodeProto) -> bool:
    """Whether more than the first result of a ``LayerNormalization`` is asked for."""
    return any(node.output[1:])


def _centred(emit: NodeEmitter, data: str, axes: list[int]) -> tuple[str, str, str]:
    """x - mean, the mean of its square, and the mean."""
    mean = emit_reduce(emit, "ReduceMean", data, axes)
    centred = emit("Sub", data, mean)
    return centred, emit_reduce(emit, "ReduceMean", emit("Mul", centred, centred), axes), mean


NORMALISATION_LOWERINGS: Mapping[str, Lowering] = {
    "LayerNormalization": _lower_layer_normalization,
    "LpNormalization": _lower_lp_normalization,
    "MeanVarianceNormalization": _lower_mean_variance_normalization,
}
"""By operator."""
