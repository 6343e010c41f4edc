"""Training towards another network's scores instead of labels: fine-tuning that keeps what the network had learned.

Behind ``shorten``, the network as it was before is a teacher that costs a forward pass per step. Its scores say how the
classes compare for every training image, which labels do not, and a network that fits its training set has little left
to learn from labels (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.errors import UsageError

from .frozen import freeze
from .trainer import Batches


class Distillation:
    """A copy of ``model`` as it is now, in inference, as the teacher of what ``model`` becomes.

        distillation = Distillation(model)
        tree_signs = TreeSigns(model, steps, ratio=0.18, options=FINE_TUNING)
        Trainer(model, distillation.batches(batches), options, tree_signs=tree_signs, loss=distillation.loss).run()

    For classifiers: scores float [N, classes]. Labels are not looked at.
    """

    def __init__(self, model: nn.Module, temperature: float = 4.0) -> None:
        """``temperature``: by which scores are divided before they are compared, so that small ones count.

        Raises:
            UsageError: the temperature is not positive and finite.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature is {temperature}: it must be positive")
        self.teacher, self.temperature = freeze(model).requires_grad_(False), temperature

    def batches(self, batches: Batches) -> Batches:
        """The inputs of ``batches`` with the teacher's scores, float [N, classes], in the place of their targets."""

        def of_epoch(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            for inputs, _ in batches(epoch):
                with torch.no_grad():
                    scores = self.teacher(inputs)
                yield inputs, scores

        return of_epoch

    def loss(self, scores: Tensor, teacher: Tensor) -> Tensor:
        """T² times the Kullback-Leibler divergence of softmax(``scores`` / T) from the teacher's, mean over the batch.

        With T² the gradient has about the same size at all temperatures (the paper's section 2).
        """
        mine, theirs = (functional.log_softmax(some / self.temperature, dim=1) for some in (scores, teacher))
        return self.temperature**2 * functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)
