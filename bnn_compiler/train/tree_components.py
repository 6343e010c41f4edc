"""Where a channel tree makes weights equal: components of nodes of equal sign, position by position.

Cut a tree's edges at one position wherever its ends differ. What stays connected is a *component*; all its nodes have
one sign, and all its neighbours the other. So flipping a whole component makes every edge on its boundary agree: it
saves one plane per edge, and costs the task as many flips as the component has channels. Synthetic nodes flip for
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bnn_compiler.trees.channel_tree import ALL_PLUS, ChannelTree

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def node_components(tree: ChannelTree, vectors: npt.NDArray[np.uint8]) -> Ints:
    """The number of each node's component per position, int64 [K, N], for any ``vectors`` uint8 [K, N] on the tree.

    A component's number is that of its topmost node and position, ``node * N + position``.
    """
    weights = vectors.shape[1]
    columns = np.arange(weights)
    found = np.empty(vectors.shape, np.int64)
    for node in tree.order.tolist():
        parent = int(tree.parents[node])
        found[node] = node * weights + columns
        if parent >= 0:
            found[node] = np.where(vectors[node] == vectors[parent], found[parent], found[node])
    return found


@dataclass(frozen=True, eq=False)
class Flips:
    """What flipping a component would save (planes) and cost (sum of |w| of its channels); both [K · N], by number."""

    planes: Ints
    price: Floats


def price_flips(
    tree: ChannelTree, vectors: npt.NDArray[np.uint8], found: Ints, magnitudes: npt.NDArray[np.float64]
) -> Flips:
    """Price all components ``found``; ``magnitudes`` float64 [M, N] are |w|.

    An edge from a root's constant vector counts as well: it is saved where it differs, and begins to differ where not.
    """
    size = vectors.size
    planes = np.zeros(size, np.int64)
    below = np.flatnonzero(tree.parents >= 0)
    above = tree.parents[below]
    cut = vectors[below] != vectors[above]
    planes += np.bincount(found[below][cut], minlength=size)
    planes += np.bincount(found[above][cut], minlength=size)
    rooted = np.flatnonzero(tree.parents < 0)
    constant = np.array([tree.roots[node] == ALL_PLUS for node in rooted.tolist()])[:, None]
    differs = vectors[rooted].astype(np.bool_) != constant
    planes += np.bincount(found[rooted][differs], minlength=size)
    planes -= np.bincount(found[rooted][~differs], minlength=size)
    price: Floats = np.zeros(size)
    price += np.bincount(found[: tree.channels].reshape(-1), weights=magnitudes.reshape(-1), minlength=size)
    return Flips(planes, price)
