"""All binary stages as one pass, for use in a pipeline of TVM's own.

    with target:
        module = tvm.transform.Sequential([CompileBinaryOps(), relax.get_pipeline("zero")])(module)
    relax.build(module, target)

What is not binary is left as it was, for TVM's or the user's own passes. ``optimize_float=True`` compiles that too.
"""

from __future__ import annotations

import tvm
from tvm import relax

from bnn_compiler.kernels.kernel_choice import ChoiceOptions
from bnn_compiler.options import Algorithm, SignZero
from bnn_compiler.target import target_in_scope

from .decide_sign_zeros import DecideSignZeros
from .flatten_conv3d import FlattenConv3d
from .float_pipeline import float_pipeline
from .fold_batch_norm import FoldBatchNorm
from .lower_binary_ops import LowerBinaryOps
from .narrow_double_products import NarrowDoubleProducts
from .partition_binary_ops import PartitionBinaryOps


@tvm.transform.module_pass(opt_level=0, name="CompileBinaryOps")
class CompileBinaryOps:
    """What ``bnn_compiler.pipeline`` lists, for one target; the float pipeline only if asked for."""

    def __init__(
        self,
        target: tvm.target.Target | None = None,
        *,
        algorithm: Algorithm = "auto",
        sign_zero: SignZero = "auto",
        optimize_float: bool = False,
    ) -> None:
        self._target = target
        self._algorithm = algorithm
        self._decide = DecideSignZeros(sign_zero)
        self._partition = PartitionBinaryOps(algorithm=algorithm, sign_zero=sign_zero)
        self._optimize_float = optimize_float

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Compile the binary layers of ``main``; the report is the module attribute ``bnnc.layers``."""
        target = target_in_scope(self._target)
        passes = [
            # Decomposed operators leave tuples of which one field is read: recognition follows tensors.
            relax.transform.CanonicalizeBindings(),
            FoldBatchNorm(),
            self._decide,
            FlattenConv3d(),
            NarrowDoubleProducts(),
            self._partition,
            LowerBinaryOps(target, ChoiceOptions(self._algorithm)),
        ]
        if self._optimize_float:
            passes += float_pipeline(target)
        return tvm.transform.Sequential(passes)(module)
