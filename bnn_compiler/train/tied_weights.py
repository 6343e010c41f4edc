"""Training with the trees held: weights that a channel tree makes equal stay equal.

If all weights of a component (``tree_components``) keep one latent value, no edge ever differs that did not before, so
the cost of the tree cannot rise, but for edges from the roots' constant vectors. The latent value starts as the
members' mean and moves by the mean of their gradients.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from .layers import BinaryLayer
from .sign_matrices import sign_matrices
from .tree_components import node_components
from .tree_loss import tree_layers
from .tree_pull import TreeShape, solve_fast


class TiedWeights:
    """Hold the channel trees of a model's convolutions while it trains.

    Make it before the optimiser's first step (the trees are solved then), call ``tie_gradients`` between ``backward``
    and the optimiser's step, and ``tie_weights`` after it.
    """

    def __init__(self, model: nn.Module, tree: TreeShape | None = None, *, layers: list[str] | None = None) -> None:
        """Solve the trees and tie latent weights; signs stay as they are."""
        shape = tree or TreeShape()
        self._tied = {
            name: _Tied(layer, torch.from_numpy(_component_of_weights(layer, shape)))
            for name, layer in tree_layers(model, layers).items()
        }
        self.tie_weights()

    @classmethod
    def of_state(cls, model: nn.Module, state: Mapping[str, Tensor]) -> TiedWeights:
        """Tie as ``state_dict`` said; solves nothing."""
        self = cls.__new__(cls)
        layers = tree_layers(model, list(state))
        self._tied = {name: _Tied(layers[name], index) for name, index in state.items()}
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The component of each weight, int64 [weights], by layer."""
        return {name: tied.index for name, tied in self._tied.items()}

    def tie_gradients(self) -> None:
        """Replace each weight's gradient by the mean over its component."""
        for tied in self._tied.values():
            if tied.layer.weight.grad is not None:
                tied.layer.weight.grad.copy_(tied.means(tied.layer.weight.grad))

    def tie_weights(self) -> None:
        """Replace each latent weight by the mean over its component."""
        with torch.no_grad():
            for tied in self._tied.values():
                tied.layer.weight.copy_(tied.means(tied.layer.weight))


class _Tied:
    """A layer and the component of each of its weights, int64 [weights], numbered from 0."""

    def __init__(self, layer: BinaryLayer, index: Tensor) -> None:
        self.layer, self.index = layer, index.to(layer.weight.device)
        self.counts = torch.bincount(self.index).to(layer.weight.dtype)

    def means(self, values: Tensor) -> Tensor:
        sums = torch.zeros_like(self.counts).scatter_add_(0, self.index, values.detach().reshape(-1))
        return (sums / self.counts)[self.index].reshape(values.shape)


def _component_of_weights(layer: BinaryLayer, shape: TreeShape) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    numbers, first = [], 0
    for signs in sign_matrices(layer):
        tree = solve_fast(signs, shape)
        numbers.append(node_components(tree, tree.vectors)[: tree.channels].reshape(-1) + first)
        first += tree.vectors.size
    _, dense = np.unique(np.concatenate(numbers), return_inverse=True)
    return dense.reshape(-1).astype(np.int64)
