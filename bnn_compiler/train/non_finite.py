"""Which layer a NaN or infinity comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, run: Callable[[], object]) -> str:
    """Name the module of ``model`` where a value that is not finite first appears while ``run`` calls the model.

    A module's own parameters come first: a sign maps NaN to -1, so a broken layer's NaN need not reach the loss. Then
    the first module, in the order of execution, whose output is not finite. "the loss" if there is none.
    """
    for name, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if not torch.isfinite(parameter).all():
                return f"layer {name or 'of the model'} ({kind})"
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"layer {name}")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss"
