"""The passes that compile everything that is not a binary layer."""

from __future__ import annotations

import tvm
from tvm import relax

from .fold_batch_norm import FoldBatchNorm
from .fuse_conv_packs import FuseConvPacks
from .fuse_named_ops import FuseNamedOps
from .hoist_max_pool import HoistMaxPool
from .legalize_float_ops import legalize_float_ops
from .lift_derived_constants import FUNCTION as DERIVATION
from .lower_float_ops import LowerFloatOps
from .lower_sorts import LowerSorts
from .schedule_float_kernels import ScheduleFloatKernels


@tvm.transform.module_pass(opt_level=0, name="FoldConstantsOfRuns")
class FoldConstantsOfRuns:
    """``relax.transform.FoldConstant`` on every function but ``derive_constants``.

    TVM would evaluate that one whole, and the library would store what it is to derive (``LiftDerivedConstants``).
    """

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        folded = relax.transform.FoldConstant()(module)
        for variable, function in module.functions.items():
            if variable.name_hint == DERIVATION:
                folded.update_func(folded.get_global_var(DERIVATION), function)
        return folded


def float_pipeline(target: tvm.target.Target) -> list[tvm.transform.Pass]:
    """Passes from a Relax module (float operators beside ``call_tir`` of finished kernels) to one of scheduled kernels.

    What they leave is ready for ``relax.build``: its default pipeline starts with ``LegalizeOps``, which then finds
    nothing to do, and goes on to call rewriting and memory planning. A caller with a pipeline of its own continues with
    ``RewriteDataflowReshape``, ``ToNonDataflow``, ``RemovePurityChecking``, ``CallTIRRewrite``.

    Finished kernels keep out of fusion by ``op_pattern`` 8 (opaque), out of scheduling by attribute ``bnnc.kernel``.
    """
    return [
        # Phase 1: operators that have a better form than their definition.
        FoldBatchNorm(),
        relax.transform.DecomposeOpsForInference(),
        HoistMaxPool(),
        # Phase 2: our own kernels, then TVM's definition of everything else.
        FuseConvPacks(target),
        LowerFloatOps(target),
        LowerSorts(),
        legalize_float_ops(),
        FoldConstantsOfRuns(),
        relax.transform.DeadCodeElimination(),
        # Phase 3: elementwise work joins its producer.
        relax.transform.AnnotateTIROpPattern(),
        FuseNamedOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        # Phase 4: loops.
        ScheduleFloatKernels(target),
    ]
