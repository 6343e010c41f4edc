"""Statistics of batch-norms, measured anew after weights were changed without training.

A batch-norm in inference uses the mean and deviation that its input had in training. Flipped weights give an input of
another distribution, and the batch-norm, with the sign behind it, the wrong thresholds. (The remedy is the one for
averaged weights: Izmailov et al., UAI 2018, section 3.2.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from bnn_compiler.errors import UsageError


def calibrate_batch_norms(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch-norms by those over ``inputs``; nothing else changes.

    ``inputs``: batches as in training, of its size; a hundred are plenty. Without a batch-norm they are not looked at.

    Raises:
        UsageError: there is no batch, or the statistics are not finite; the model then is as it was.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    momenta, training, seen = [norm.momentum for norm in norms], model.training, 0

    def counted() -> Iterator[Tensor]:
        nonlocal seen
        for batch in inputs:
            seen += 1
            yield batch

    good = False
    try:
        with torch.no_grad():
            update_bn(counted(), model)
        if norms and not seen:
            raise UsageError("there are no batches to calibrate batch-norms with")
        if not all(torch.isfinite(value).all() for norm in norms for value in norm.state_dict().values()):
            raise UsageError("batch-norms cannot be calibrated: statistics over the batches given are not finite")
        good = True
    finally:
        if not good:
            for norm, state, momentum in zip(norms, before, momenta, strict=True):
                norm.load_state_dict(state)
                norm.momentum = momentum
            model.train(training)
