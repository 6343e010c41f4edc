"""Which layers are computed along channel trees, and what their trees cost."""

from __future__ import annotations

from torch import nn

from bnn_compiler.errors import UsageError

from .forest import TreeShape, solve_fast
from .layers import BinaryConv2d, BinaryLayer, binary_layers
from .sign_matrices import sign_matrices


def tree_layers(model: nn.Module, names: list[str] | None = None) -> dict[str, BinaryLayer]:
    """The layers of ``names``; by default all binary convolutions, which alone are computed along trees.

    Raises:
        UsageError: there is none, or a name is not a binary layer's.
    """
    known = binary_layers(model)
    if names is None:
        names = [name for name, layer in known.items() if isinstance(layer, BinaryConv2d)]
    missing = [name for name in names if name not in known]
    if missing:
        raise UsageError(f"{missing[0]!r} is no binary layer; there are {', '.join(known)}")
    if not names:
        raise UsageError(f"{type(model).__name__} has no binary convolution, and only these are computed along trees")
    return {name: known[name] for name in names}


def cost_ratios(model: nn.Module, tree: TreeShape | None = None, names: list[str] | None = None) -> dict[str, float]:
    """Cost of each layer's channel trees (planes, synthetic nodes' overhead included) over its number of weights."""
    shape = tree or TreeShape()
    ratios = {}
    for name, layer in tree_layers(model, names).items():
        cost = sum(solve_fast(signs, shape).cost for signs in sign_matrices(layer))
        ratios[name] = cost / layer.weight.numel()
    return ratios


def total_ratio(model: nn.Module, tree: TreeShape | None = None, names: list[str] | None = None) -> float:
    """``cost_ratios`` over all layers together: costs over weights."""
    ratios = cost_ratios(model, tree, names)
    sizes = {name: layer.weight.numel() for name, layer in tree_layers(model, names).items()}
    cost = sum(ratios[name] * sizes[name] for name in ratios)
    return float(cost / sum(sizes.values()))
