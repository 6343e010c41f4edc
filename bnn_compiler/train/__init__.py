"""Training of binary networks in PyTorch, for channel trees that cost little.

    from bnn_compiler.train import BinaryConv2d, ChannelTreeLoss, export

An optional part: ``pip install bnn-compiler[train]`` (docs/training.md says how to get PyTorch without CUDA).
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("bnn_compiler.train needs PyTorch: pip install 'bnn-compiler[train]'") from _error

from .calibration import calibrate_batch_norms
from .distillation import Distillation
from .estimators import Estimator, sign
from .export import export
from .forest import TreeShape, Variant
from .frozen import freeze
from .layers import (
    BinaryActivation,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    binary_layers,
    clip_latent_weights,
)
from .shorten import ShortenReport, shorten
from .trainer import Trainer, TrainingError, TrainingOptions
from .tree_layers import cost_ratios, total_ratio
from .tree_loss import ChannelTreeLoss, PullOptions
from .tree_signs import FINE_TUNING, TreeSigns, TreeSignsOptions

__all__ = [
    "FINE_TUNING",
    "BinaryActivation",
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryWeightConv2d",
    "ChannelTreeLoss",
    "Distillation",
    "Estimator",
    "PullOptions",
    "ShortenReport",
    "Trainer",
    "TrainingError",
    "TrainingOptions",
    "TreeShape",
    "TreeSigns",
    "TreeSignsOptions",
    "Variant",
    "binary_layers",
    "calibrate_batch_norms",
    "clip_latent_weights",
    "cost_ratios",
    "export",
    "freeze",
    "shorten",
    "sign",
    "total_ratio",
]
