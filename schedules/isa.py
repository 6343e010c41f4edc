"""Which vector instructions a kernel may use, read from a TVM target.

An intrinsic for the wrong CPU aborts the whole process, so kernels never look at the target's name: they ask an ``Isa``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PopcountUnit = Literal["vpopcntq", "avx512_lookup", "avx2_lookup", "neon", "portable"]


@dataclass(frozen=True)
class Isa:
    """What kernels need to know of a CPU. ``vector_bits`` is the widest vector worth using."""

    name: str
    vector_bits: int
    popcount: PopcountUnit
    fused_multiply_add: bool
    ternary_logic: bool
    gfni: bool
