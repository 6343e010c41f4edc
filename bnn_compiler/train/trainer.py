"""A training loop that can be interrupted, and stops where numbers break.

Adam, a cosine schedule of the learning rate, latent weights clipped after each step; a penalty for what the trees cost
(``ChannelTreeLoss``), signs that agree along them (``TreeSigns``), both or none. Where weights had to be flipped behind
the last step, batch-norms are calibrated with the last epoch's inputs. A checkpoint is written after each epoch and
holds all that the rest depends on, so a run that is interrupted and resumed gives the same network, bit for bit, on a
CPU with deterministic algorithms and the same number of threads.
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

from .calibration import calibrate_batch_norms
from .checkpoint import load_checkpoint, save_checkpoint
from .layers import binary_layers, clip_latent_weights
from .non_finite import first_non_finite
from .tree_loss import ChannelTreeLoss
from .tree_signs import TreeSigns

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
        learning_rate: of Adam, at the start; it falls to 0 as a cosine.
        steps: of all epochs together. Given, the learning rate falls step by step, else epoch by epoch, which leaves it
            high in the last of few epochs.
    """

    epochs: int
    learning_rate: float = 2e-3
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.epochs < 1:
            raise UsageError(f"epochs is {self.epochs}: one at least is needed")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UsageError(f"learning_rate is {self.learning_rate}: it must be positive")
        if self.steps is not None and self.steps < 1:
            raise UsageError(f"steps is {self.steps}: one at least is needed")

    def learning_rate_at(self, epoch: int, step: int) -> float:
        """Of step ``step`` (of all, from 1), which is in epoch ``epoch`` (from 1)."""
        part = (epoch - 1) / self.epochs if self.steps is None else min(1.0, (step - 1) / self.steps)
        return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * part))


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
        tree_signs: TreeSigns | None = None,
        loss: Loss = functional.cross_entropy,
        checkpoint: Path | None = None,
    ) -> None:
        """``checkpoint``: written after each epoch. ``tree_signs`` must count this training's steps.

        Raises:
            UsageError: the model has no binary layer.
        """
        binary_layers(model)
        self.model, self.options, self.checkpoint = model, options, checkpoint
        self._batches, self._tree_loss, self._tree_signs, self._loss = batches, tree_loss, tree_signs, loss
        self._optimiser = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
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
            if self._tree_signs is not None and self.epoch == self.options.epochs and self._tree_signs.finish():
                calibrate_batch_norms(self.model, (inputs for inputs, _ in self._batches(self.epoch)))
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
        if self._tree_signs is not None:
            self._tree_signs.load_state_dict(state["tree_signs"])
        torch.set_rng_state(state["random"])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]

    def _train_epoch(self, epoch: int, progress: Progress) -> None:
        self.model.train()
        total, count = 0.0, 0
        for inputs, targets in self._batches(epoch):
            self.step += 1
            for group in self._optimiser.param_groups:
                group["lr"] = self.options.learning_rate_at(epoch, self.step)
            value = self._train_step(inputs, targets)
            total, count = total + value * len(targets), count + len(targets)
            progress(epoch, self.step, value)
        if count == 0:
            raise UsageError(f"epoch {epoch} has no batches")
        self.losses.append(total / count)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> float:
        if self._tree_signs is not None:
            self._tree_signs.begin_step()
        loss = self._loss(self.model(inputs), targets)
        self._check(loss, "loss", inputs)
        penalty = None if self._tree_loss is None else self._tree_loss()
        self._optimiser.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                self._check(parameter.grad, f"gradient of {name}", inputs)
        self._optimiser.step()
        clip_latent_weights(self.model)
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
        tree_loss, signs = self._tree_loss, self._tree_signs
        return {
            "options": asdict(self.options),
            "tree loss": None if tree_loss is None else {"weight": tree_loss.weight, **asdict(tree_loss.options)},
            "tree signs": None if signs is None else signs.settings(),
            "shapes": shapes,
        }

    def _state(self) -> dict[str, Any]:
        return {
            **self._identity(),
            "model": self.model.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "tree_loss": None if self._tree_loss is None else self._tree_loss.state_dict(),
            "tree_signs": None if self._tree_signs is None else self._tree_signs.state_dict(),
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
        }
