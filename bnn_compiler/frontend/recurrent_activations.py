"""The activation functions that ``RNN``, ``GRU`` and ``LSTM`` name in attributes.

``activations`` lists the functions of each direction; ``activation_alpha`` and ``activation_beta`` hold the numbers of
those that take any, in order; what is not listed is the function's own default (those of ONNX Runtime).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .node_emitter import NodeEmitter
from .onnx_graph import attribute_value, describe_node

Activation = Callable[[NodeEmitter, str], str]

_DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}

_PARAMETERS: Mapping[str, tuple[float | None, float | None]] = {
    "affine": (1.0, 0.0),
    "elu": (1.0, None),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, None),
    "relu": (None, None),
    "scaledtanh": (1.0, 1.0),
    "sigmoid": (None, None),
    "softplus": (None, None),
    "softsign": (None, None),
    "tanh": (None, None),
    "thresholdedrelu": (1.0, None),
}
"""The defaults of alpha and beta; ``None`` where a function takes none."""

_OPERATORS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "elu": ("Elu", ("alpha",)),
    "hardsigmoid": ("HardSigmoid", ("alpha", "beta")),
    "leakyrelu": ("LeakyRelu", ("alpha",)),
    "relu": ("Relu", ()),
    "sigmoid": ("Sigmoid", ()),
    "softplus": ("Softplus", ()),
    "softsign": ("Softsign", ()),
    "tanh": ("Tanh", ()),
}
"""Those that are operators, with the attributes they take. ``ThresholdedRelu`` came with operator set 10."""


def read_activations(node: NodeProto, directions: int) -> list[list[Activation]]:
    """The functions of each direction.

    Raises:
        ModelError: an unknown function, or another number of them than the operator has.
    """
    names = attribute_value(node, "activations") or [name.encode() for name in _DEFAULTS[node.op_type]] * directions
    alphas, betas = (attribute_value(node, f"activation_{name}") or [] for name in ("alpha", "beta"))
    count = len(_DEFAULTS[node.op_type])
    if not isinstance(names, list) or len(names) != count * directions:
        raise ModelError(f"{describe_node(node)} must name {count * directions} activations")
    assert isinstance(alphas, list)
    assert isinstance(betas, list)
    left = list(alphas), list(betas)
    found: list[Activation] = []
    for name in names:
        key = name.decode(errors="replace").lower()
        if key not in _PARAMETERS:
            raise ModelError(f"{describe_node(node)} has the unknown activation {name.decode(errors='replace')!r}")
        alpha, beta = (
            0.0 if default is None else float(listed.pop(0)) if listed else default
            for listed, default in zip(left, _PARAMETERS[key], strict=True)
        )
        found.append(_activation(key, alpha, beta))
    return [found[start : start + count] for start in range(0, len(found), count)]


def _activation(key: str, alpha: float, beta: float) -> Activation:
    def apply(emit: NodeEmitter, data: str) -> str:
        if key == "affine":
            return emit("Add", emit("Mul", data, emit.scalar(alpha)), emit.scalar(beta))
        if key == "scaledtanh":
            return emit("Mul", emit("Tanh", emit("Mul", data, emit.scalar(beta))), emit.scalar(alpha))
        if key == "thresholdedrelu":
            over = emit("Cast", emit("Greater", data, emit.scalar(alpha)), to=emit.element_type)
            return emit("Mul", data, over)
        operator, attributes = _OPERATORS[key]
        values = {"alpha": alpha, "beta": beta}
        return emit(operator, data, **{name: values[name] for name in attributes})

    return apply
