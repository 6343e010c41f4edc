"""Relax passes, one per file; each can stand in a ``tvm.transform.Sequential`` of its own."""

from .fold_batch_norm import FoldBatchNorm
from .partition_binary_ops import PartitionBinaryOps

__all__ = ["FoldBatchNorm", "PartitionBinaryOps"]
