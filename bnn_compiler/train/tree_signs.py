"""Training with the tree's cost in the forward pass: signs that agree along the channel tree.

Between two solves of the tree, a layer's signs are those of ``forest_signs``: a weight is overruled by its neighbours
in the tree where its latent value is smaller than what the edges are worth, λ · mean |w| each. So λ is in units of the
average weight, and means the same for all layer sizes. Nothing is frozen: latent weights learn one by one, and groups
of equal signs form and part from step to step. (Proximal steps in the forward pass, gradients straight through:
ProxQuant, Bai et al., ICLR 2019, has the one, BinaryConnect, Courbariaux et al., NIPS 2015, the other; with pruning's
masks in the tree's place it is dynamic pruning with feedback, Lin et al., ICLR 2020.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn_compiler.errors import UsageError

from .estimators import sign
from .forest import Forest, centre_forest, tree_forest
from .forest_signs import StraightThroughSigns, forest_signs
from .layers import weight_signs
from .neighbour_options import NeighbourOptions
from .shorten import shorten, write_signs
from .sign_matrices import sign_matrices
from .tree_layers import tree_layers

#: λ at the first solve, where it is found for a given ratio; how fast it follows, and the most it may be.
_FIRST, _GAIN, _MOST = 0.1, 1.0, 1e4
#: Of the ratio asked for, what is aimed at: what is missing at the end is cut with no training behind it.
_AIM = 0.985


@dataclass(frozen=True)
class TreeSignsOptions(NeighbourOptions):
    """How ``TreeSigns`` goes about it, beside who agrees with whom.

    Attributes:
        start: part of the training after which signs begin to agree.
        until: part of the training at which λ, or the cost ratio, has reached what it shall be.
        settle: part of the training after which trees, and a λ that follows a ratio, stay as they are: each new tree
            disturbs some signs, and what is left of the learning rate must make up for it.
    """

    start: float = 0.1
    until: float = 0.4
    settle: float = 0.7

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not 0 <= self.start <= self.until <= self.settle <= 1:
            parts = f"start ({self.start}), until ({self.until}) and settle ({self.settle})"
            raise UsageError(f"{parts} are parts of the training, in this order")


#: For training that continues a trained network for a few epochs: trees are short early, and found anew often.
FINE_TUNING = TreeSignsOptions(start=0.0, until=0.1, settle=0.5, solve_every=10)


class TreeSigns:
    """Make a model's binary layers use signs that agree along their channel trees.

        tree_signs = TreeSigns(model, steps, ratio=0.12)
        for x, y in batches:            # ``steps`` in all; Trainer does this
            tree_signs.begin_step()
            loss = cross_entropy(model(x), y)
            ...
        tree_signs.finish()

    Give either ``weight``, λ (it rises linearly from ``start`` to ``until``), or ``ratio``, the cost of all layers'
    trees together over their weights: λ is then adjusted at each solve, so that the ratio falls by equal factors from
    where it is at ``start`` to what it shall be at ``until``, and stays there. Only convolutions are taken by default,
    as only they are computed along trees; ``layers`` names others.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        weight: float | None = None,
        ratio: float | None = None,
        options: TreeSignsOptions | None = None,
        layers: list[str] | None = None,
    ) -> None:
        """``steps``: of the whole training.

        Raises:
            UsageError: λ < 0, a ratio outside (0, 1), both or none of them, no binary layer, or a name in ``layers``
                that is none.
        """
        self.options = options or TreeSignsOptions()
        if (weight is None) == (ratio is None):
            raise UsageError("give either weight, λ, or the cost ratio to reach")
        if weight is not None and not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"λ is {weight}: it must be a finite number of at least 0")
        if ratio is not None and not 0 < ratio < 1:
            raise UsageError(f"the cost ratio to reach is {ratio}: it must lie between 0 and 1")
        if ratio is not None and self.options.variant == "centres":
            raise UsageError("cluster centres have no cost ratio to steer by: give weight, λ")
        if steps < 1:
            raise UsageError(f"steps is {steps}: one at least is needed")
        self.steps, self.weight, self.ratio = steps, weight, ratio
        self.model, self.layers = model, tree_layers(model, layers)
        self.step, self.finished, self._next_solve = 0, False, 0
        self._coupling, self._first_ratio = 0.0, 0.0
        self._signs = {name: _LayerSigns() for name in self.layers}
        for name, layer in self.layers.items():
            layer.signs_of = self._signs[name]

    @property
    def coupling(self) -> float:
        """λ at present."""
        return self._coupling

    def begin_step(self) -> None:
        """Solve trees if they are due, set λ, and count a step; before each forward pass."""
        options, since = self.options, self.step - self.options.start * self.steps
        if since >= 0 and self.weight != 0:
            span = (options.until - options.start) * self.steps
            part = min(1.0, since / span) if span else 1.0
            settled = self._next_solve > 0 and self.step > options.settle * self.steps
            due = self.step >= self._next_solve and not settled
            if due:
                ratio = self._solve()
                self._next_solve = self.step + options.solve_every
            if self.weight is not None:
                self._couple(self.weight * part)
            elif due:
                self._follow(ratio, part)
        self.step += 1

    def finish(self) -> int:
        """Make the signs the latent weights' own, and leave the model; after the last step.

        Where a ratio was asked for and is not quite reached, ``shorten`` flips what is missing. Returns how many
        weights those were: batch-norms want to be calibrated behind them (``calibrate_batch_norms``), as ``Trainer``
        does.
        """
        for layer in self.layers.values():
            write_signs(layer, weight_signs(layer).detach())
        self._leave()
        if self.ratio is None:
            return 0
        reports = shorten(self.model, self.ratio, self.options.tree, layers=list(self.layers), together=True)
        return sum(report.flipped for report in reports)

    def settings(self) -> dict[str, Any]:
        """All that was asked for, as numbers and strings."""
        return {"steps": self.steps, "weight": self.weight, "ratio": self.ratio, **asdict(self.options)}

    def _leave(self) -> None:
        self.finished = True
        for layer in self.layers.values():
            layer.signs_of = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the same continuation."""
        return {
            "step": self.step,
            "next solve": self._next_solve,
            "finished": self.finished,
            "coupling": self._coupling,
            "first ratio": self._first_ratio,
            "forests": {name: some.forest and some.forest.state() for name, some in self._signs.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``'s."""
        self.step, self._next_solve, self._first_ratio = state["step"], state["next solve"], state["first ratio"]
        for name, forest in state["forests"].items():
            self._signs[name].forest = None if forest is None else Forest(**forest).to(self.layers[name].weight.device)
        self._couple(state["coupling"])
        if state["finished"]:
            self._leave()

    def _solve(self) -> float:
        """Find all trees, or clusters, of the signs that the layers have now; return the trees' cost ratio."""
        options, cost = self.options, 0.0
        for name, layer in self.layers.items():
            groups = sign_matrices(layer)
            if options.variant == "centres":
                forest = centre_forest(groups, options.cluster_count(groups[0]), options.tree.seed)
            else:
                trees = [options.solve(signs) for signs in groups]
                forest = tree_forest(trees, options.depth_weight)
                cost += sum(tree.cost for tree in trees)
            self._signs[name].forest = forest.to(layer.weight.device)
        weights = sum(layer.weight.numel() for layer in self.layers.values())
        return float(cost / weights)

    def _follow(self, ratio: float, part: float) -> None:
        """Raise λ where the ratio is above what it should be by now, lower it where it is below."""
        assert self.ratio is not None
        self._first_ratio = self._first_ratio or ratio
        goal = self._first_ratio ** (1 - part) * (_AIM * self.ratio) ** part
        self._couple(min(_MOST, (self._coupling or _FIRST) * (ratio / goal) ** _GAIN))

    def _couple(self, coupling: float) -> None:
        self._coupling = coupling
        for signs in self._signs.values():
            signs.coupling = coupling


class _LayerSigns:
    """A layer's signs as a function of its latent weights."""

    def __init__(self) -> None:
        self.forest: Forest | None = None
        self.coupling = 0.0

    def __call__(self, weight: Tensor) -> Tensor:
        """Signs in the shape and memory format of ``weight``; plain ones before the first solve."""
        if self.forest is None or self.coupling == 0:
            return sign(weight)
        with torch.no_grad():
            forest = self.forest
            rows = forest_signs(weight.reshape(forest.channels, -1), forest, self.coupling)[: forest.channels]
            signs = torch.empty_like(weight).copy_(rows.reshape(weight.shape))
        return StraightThroughSigns.apply(weight, signs)
