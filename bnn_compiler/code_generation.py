"""The context in which kernels become machine code, in a library and where they are timed alone."""

from __future__ import annotations

import tvm


def code_generation() -> tvm.transform.PassContext:
    """The context in which kernels become machine code.

    TVM's elimination of common subexpressions takes half the time of unrolled kernels, and LLVM does it again.
    """
    return tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"])
