"""The cost of channel trees as a penalty on latent weights.

Between two solves of the tree, a channel's weight w with the pull t of its neighbours (``tree_pull``) is penalised by

    |t| · max(0, margin − sign(t) · w)

and a layer by λ(step) / √(M·N) times the sum over its M·N weights. The derivative is −t wherever w disagrees with its
neighbours (or agrees by less than the margin) and 0 elsewhere: the change of the tree's cost by a flip, whatever the
size of w. So weights that the task hardly holds, those near 0, flip first, and one that agrees is left to the task.

1 / √(M·N) makes λ mean the same for all layers: the pull's gradient over a layer then has a norm of λ · √(share of
weights pulled) · (root mean square of t), whatever the layer's size, as the gradient of the task behind a batch-norm
has a norm that does not grow with the layer.

After MST-compression (Vo et al., ICCV 2023), which reduces distance and depth of a minimum spanning tree in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from bnn_compiler.errors import UsageError

from .neighbour_options import NeighbourOptions
from .sign_matrices import like_weight, sign_matrices
from .tree_layers import tree_layers
from .tree_pull import centre_pull, tree_pull

Schedule = Literal["constant", "linear", "cosine"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)

_SHAPES: dict[Schedule, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda part: part,
    "cosine": lambda part: 0.5 - 0.5 * math.cos(math.pi * part),
}


@dataclass(frozen=True)
class PullOptions(NeighbourOptions):
    """How ``ChannelTreeLoss`` pulls, beside which neighbours do.

    Attributes:
        warm_up: steps without any pull, while the network finds features.
        total: steps of the whole training, for schedules that rise until its end.
        schedule: λ(step) / λ after the warm-up: ``constant``, or rising from 0 to 1 at ``total``.
        margin: how far a weight is pulled past 0, in latent units.
    """

    solve_every: int = 50
    warm_up: int = 0
    total: int = 0
    schedule: Schedule = "constant"
    margin: float = 0.05

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise UsageError(f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}")
        if self.warm_up < 0:
            raise UsageError("warm_up must not be negative")
        if self.schedule != "constant" and self.total <= self.warm_up:
            raise UsageError(f"a {self.schedule} schedule needs total ({self.total}) above warm_up ({self.warm_up})")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise UsageError("margin must not be negative")


class ChannelTreeLoss:
    """Penalty that makes output channels alike, to be added to the task's loss once per step.

        tree_loss = ChannelTreeLoss(model, 0.1, PullOptions(warm_up=200))
        loss = cross_entropy(model(x), y) + tree_loss()

    Each call is a step: it solves trees when they are due, and counts. Only convolutions are taken by default, as only
    they are computed along trees; ``layers`` names others.
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float,
        options: PullOptions | None = None,
        *,
        layers: list[str] | None = None,
    ) -> None:
        """``weight``: λ, finite and not negative; 0 turns the penalty off.

        Raises:
            UsageError: λ < 0, no binary layer to pull, or a name in ``layers`` that is none.
        """
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"λ is {weight}: it must be a finite number of at least 0")
        self.weight, self.options = float(weight), options or PullOptions()
        self.layers = tree_layers(model, layers)
        self.step = 0
        self._pulls: dict[str, Tensor] = {}

    def __call__(self) -> Tensor:
        """The penalty at the present weights, a scalar; solves trees if they are due, and counts a step."""
        factor = self.weight * self.schedule_factor()
        if factor > 0 and (not self._pulls or self.step % self.options.solve_every == 0):
            self.solve()
        self.step += 1
        some = next(iter(self.layers.values())).weight
        if factor == 0:
            return some.new_zeros(())
        total = some.new_zeros(())
        for name, layer in self.layers.items():
            pull = self._pulls[name]
            # |t| max(0, margin - sign(t) w), with sign(t) |t| = t.
            missing = (self.options.margin * pull.abs() - pull * layer.weight).clamp_min(0)
            total = total + missing.sum() / math.sqrt(layer.weight.numel())
        return factor * total

    def schedule_factor(self) -> float:
        """λ(step) / λ."""
        options = self.options
        if self.step < options.warm_up:
            return 0.0
        if options.schedule == "constant":
            return 1.0
        part = (self.step - options.warm_up + 1) / (options.total - options.warm_up)
        return _SHAPES[options.schedule](min(1.0, part))

    def solve(self) -> None:
        """Find all trees, or cluster centres, of the present signs."""
        options = self.options
        for name, layer in self.layers.items():
            pulls = []
            for signs in sign_matrices(layer):
                if options.variant == "centres":
                    pulls.append(centre_pull(signs, options.cluster_count(signs), options.tree.seed))
                else:
                    pulls.append(tree_pull(options.solve(signs), options.depth_weight))
            self._pulls[name] = like_weight(pulls, layer.weight)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for the same continuation."""
        return {"step": self.step, "pulls": {name: pull.clone() for name, pull in self._pulls.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``'s."""
        self.step = state["step"]
        self._pulls = {name: pull.clone() for name, pull in state["pulls"].items()}
