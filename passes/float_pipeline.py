"""The passes that compile everything that is not a binary layer."""

from __future__ import annotations

import tvm
from tvm import relax

from .fold_batch_norm import FoldBatchNorm
from .lower_float_ops import LowerFloatOps
from .schedule_float_kernels import ScheduleFloatKernels


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
        # Phase 2: our own kernels, then TVM's definition of everything else.
        LowerFloatOps(target),
        relax.backend.DispatchSortScan(),  # TopK and its kin, which LegalizeOps leaves
        relax.transform.LegalizeOps(),
        relax.transform.FoldConstant(),
        relax.transform.DeadCodeElimination(),
        # Phase 3: elementwise work joins its producer.
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        # Phase 4: loops.
        ScheduleFloatKernels(target),
    ]
