"""A training loop that can be interrupted, and stops where numbers break.

Adam, a cosine schedule of the learning rate by epochs, latent weights clipped after each step. From epoch ``hold_from``
on the trees are held (``TiedWeights``), shortened before if asked for, at once or epoch by epoch, and the pull ends. A
checkpoint is written after each epoch and holds all that the rest depends on, so a run that is interrupted and resumed
gives the same network, bit for bit, on a CPU with deterministic algorithms and the same number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.errors import BnncError, UsageError

from .checkpoint import load_checkpoint, save_checkpoint
from .layers import binary_layers, clip_latent_weights
from .non_finite import first_non_finite
from .shorten import shorten
from .tied_weights import TiedWeights
from .tree_loss import ChannelTreeLoss, total_ratio
from .tree_pull import TreeShape

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int, float], None]


class TrainingError(BnncError):
    """Training cannot go on: a loss or a gradient is not finite. The text names the step and the layer."""


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast; a checkpoint is only continued under the same options.

    Attributes:
        epochs: passes over the data.
        learning_rate: of Adam, at the start; it falls to 0 as a cosine, by epochs.
        hold_from: first epoch (from 1) in which the trees are held, or None.
        hold_ratio: cost ratio of all trees together that ``shorten`` reaches before they are held, or None.
        hold_until: last epoch in which trees are shortened: at the start of each epoch from ``hold_from`` on, by equal
            factors, as gradual pruning does (Zhu and Gupta, 2017); None shortens once.
        pull_held: pull while the trees are held, too; else the pull ends there.
    """

    epochs: int
    learning_rate: float = 2e-3
    hold_from: int | None = None
    hold_ratio: float | None = None
    hold_until: int | None = None
    pull_held: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}: one at least is needed")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate is {self.learning_rate}: it must be positive")
        if self.hold_from is not None and not 1 <= self.hold_from <= self.epochs:
            raise UsageError(f"hold_from is {self.hold_from}: it must be an epoch, 1 to {self.epochs}")
        if self.hold_ratio is not None and self.hold_from is None:
            raise UsageError("hold_ratio needs hold_from, the epoch in which it is reached")
        if self.hold_until is not None:
            if self.hold_from is None or self.hold_ratio is None:
                raise UsageError("hold_until needs hold_from and hold_ratio: when to begin, and where to end")
            if not self.hold_from <= self.hold_until <= self.epochs:
                raise UsageError(
                    f"hold_until is {self.hold_until}: it must be an epoch, {self.hold_from} to {self.epochs}"
                )


class Trainer:
    """Trains a model with binary layers.

    ``batches(epoch)`` gives the inputs and targets of an epoch (from 1) and must give the same each time it is asked
    for that epoch: seed a generator with the epoch's number.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        options: TrainingOptions,
        *,
        tree_loss: ChannelTreeLoss | None = None,
        tree: TreeShape | None = None,
        loss: Loss = functional.cross_entropy,
        checkpoint: Path | None = None,
    ) -> None:
        """``checkpoint``: written after each epoch; ``tree``: of the trees that are held.

        Raises:
            UsageError: the model has no binary layer.
        """
        binary_layers(model)
        self.model, self.options, self.checkpoint = model, options, checkpoint
        self._batches, self._tree_loss, self._tree, self._loss = batches, tree_loss, tree, loss
        self._optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
        self._tied: TiedWeights | None = None
        self._ratio_before = 1.0
        self.epoch, self.step = 0, 0
        self.losses: list[float] = []

    def run(self, progress: Progress | None = None) -> list[float]:
        """Train to the last epoch and return each epoch's mean loss, without the penalty.

        ``progress`` is called after each step with the epoch, the step (of all) and the step's loss.

        Raises:
            TrainingError: a loss or gradient is NaN or infinite; the checkpoint of the last good epoch stays.
        """
        while self.epoch < self.options.epochs:
            self._train_epoch(self.epoch + 1, progress or (lambda _epoch, _step, _loss: None))
            self.epoch += 1
            if self.checkpoint is not None:
                save_checkpoint(self.checkpoint, self._state())
        return self.losses

    def resume(self) -> None:
        """Continue where the checkpoint was written.

        Raises:
            ArtifactError: there is none, or it is damaged.
            UsageError: it is of another model or of other options.
        """
        if self.checkpoint is None:
            raise UsageError("there is no checkpoint to resume from: name one")
        state = load_checkpoint(self.checkpoint)
        for key, here in self._identity().items():
            if state[key] != here:
                raise UsageError(f"{self.checkpoint} was written with {key} {state[key]}, this run has {here}")
        self.model.load_state_dict(state["model"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._tree_loss is not None:
            self._tree_loss.load_state_dict(state["tree_loss"])
        if state["tied"] is not None:
            self._tied = TiedWeights.of_state(self.model, state["tied"])
        self._ratio_before = state["ratio_before"]
        torch.set_rng_state(state["random"])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]

    def _train_epoch(self, epoch: int, progress: Progress) -> None:
        options = self.options
        if options.hold_from is not None and epoch >= options.hold_from:
            self._hold(epoch - options.hold_from)
        for group in self._optimiser.param_groups:
            group["lr"] = options.learning_rate * (0.5 + 0.5 * math.cos(math.pi * (epoch - 1) / options.epochs))
        self.model.train()
        total, count = 0.0, 0
        for inputs, targets in self._batches(epoch):
            value = self._train_step(inputs, targets)
            total, count = total + value * len(targets), count + len(targets)
            progress(epoch, self.step, value)
        if count == 0:
            raise UsageError(f"epoch {epoch} has no batches")
        self.losses.append(total / count)

    def _hold(self, since: int) -> None:
        """Shorten and tie, in the first epoch that holds the trees and in those that shorten them further."""
        options = self.options
        last = 0 if options.hold_until is None else options.hold_until - (options.hold_from or 0)
        if since > last:
            return
        if options.hold_ratio is not None:
            if since == 0:
                self._ratio_before = max(options.hold_ratio, total_ratio(self.model, self._tree))
            part = (since + 1) / (last + 1)
            ratio = self._ratio_before ** (1 - part) * options.hold_ratio**part
            shorten(self.model, ratio, self._tree, together=True)
        self._tied = TiedWeights(self.model, self._tree)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> float:
        self.step += 1
        loss = self._loss(self.model(inputs), targets)
        self._check(loss, "loss", inputs)
        pulled = self._tree_loss is not None and (self._tied is None or self.options.pull_held)
        penalty = self._tree_loss() if self._tree_loss is not None and pulled else None
        self._optimiser.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                self._check(parameter.grad, f"gradient of {name}", inputs)
        if self._tied is not None:
            self._tied.tie_gradients()
        self._optimiser.step()
        clip_latent_weights(self.model)
        if self._tied is not None:
            self._tied.tie_weights()
        return float(loss.detach())

    def _check(self, value: Tensor, what: str, inputs: Tensor) -> None:
        if torch.isfinite(value).all():
            return
        where = first_non_finite(self.model, lambda: self.model(inputs))
        kept = ""
        if self.checkpoint is not None and self.epoch:
            kept = f"; the checkpoint of epoch {self.epoch} is kept: {self.checkpoint}"
        raise TrainingError(f"step {self.step}: the {what} is not finite; it begins in {where}{kept}")

    def _identity(self) -> dict[str, Any]:
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        tree_loss = self._tree_loss
        pull = None if tree_loss is None else {"weight": tree_loss.weight, **asdict(tree_loss.options)}
        return {"options": asdict(self.options), "tree loss": pull, "shapes": shapes}

    def _state(self) -> dict[str, Any]:
        return {
            **self._identity(),
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "tree_loss": None if self._tree_loss is None else self._tree_loss.state_dict(),
            "tied": None if self._tied is None else self._tied.state_dict(),
            "ratio_before": self._ratio_before,
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
        }
