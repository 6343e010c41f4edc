"""Relax passes, one per file; each can stand in a ``tvm.transform.Sequential`` of its own."""

import tvm_ffi

from bnn_compiler.errors import BnncError

from .compare_before_sigmoid import CompareBeforeSigmoid
from .compile_binary_ops import CompileBinaryOps
from .decide_sign_zeros import DecideSignZeros
from .expose_activation_bits import ExposeActivationBits
from .flatten_conv3d import FlattenConv3d
from .float_pipeline import float_pipeline
from .fold_batch_norm import FoldBatchNorm
from .fold_broadcast_constants import FoldBroadcastConstants
from .lift_derived_constants import LiftDerivedConstants
from .lower_binary_ops import LowerBinaryOps
from .lower_float_ops import LowerFloatOps
from .lower_sorts import LowerSorts
from .name_variables import NameVariables
from .narrow_double_products import NarrowDoubleProducts
from .partition_binary_ops import PartitionBinaryOps
from .plan_layouts import PlanLayouts
from .schedule_float_kernels import ScheduleFloatKernels

__all__ = [
    "CompareBeforeSigmoid",
    "CompileBinaryOps",
    "DecideSignZeros",
    "ExposeActivationBits",
    "FlattenConv3d",
    "FoldBatchNorm",
    "FoldBroadcastConstants",
    "LiftDerivedConstants",
    "LowerBinaryOps",
    "LowerFloatOps",
    "LowerSorts",
    "NameVariables",
    "NarrowDoubleProducts",
    "PartitionBinaryOps",
    "PlanLayouts",
    "ScheduleFloatKernels",
    "float_pipeline",
]

# An exception crosses TVM's C++ pass infrastructure by name; without this it would come out as a RuntimeError.
for _error in BnncError.__subclasses__():
    tvm_ffi.register_error(_error.__name__, _error)
