"""Which vector instructions a kernel may use, read from a TVM target.

An intrinsic for the wrong CPU aborts the whole process, so kernels never look at the target's name: they ask an
``Isa``. The name only says whose cores these are, which the same instructions take different times on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tvm
from tvm.target import codegen

PopcountUnit = Literal["vpopcntq", "avx512_lookup", "avx2_lookup", "neon", "portable"]
Vendor = Literal["intel", "any"]

#: How LLVM's names of Intel's cores with AVX-512 begin. (Those of the efficient cores have none.)
_INTEL_AVX512 = (
    *("skylake-avx512", "skx", "cascadelake", "cooperlake", "cannonlake", "icelake", "rocketlake", "tigerlake"),
    *("sapphirerapids", "emeraldrapids", "graniterapids", "diamondrapids"),
)


@dataclass(frozen=True)
class Isa:
    """What kernels need to know of a CPU. ``vector_bits`` is the widest vector worth using.

    ``vendor`` is for predictions of time alone: code must not depend on it.
    """

    name: str
    vector_bits: int
    popcount: PopcountUnit
    fused_multiply_add: bool
    ternary_logic: bool
    gfni: bool
    vendor: Vendor = "any"


def detect_isa(target: tvm.target.Target) -> Isa:
    """Read the ``Isa`` of an LLVM target from the features LLVM derives from its triple, CPU and attributes.

    AVX-512 counts only with F, BW, DQ and VL together (every CPU since Skylake-X; Knights Landing falls back to AVX2),
    because kernels mix 512-bit and 256-bit forms freely. A target that is no ``llvm`` target is a ``ValueError``.
    """
    if target.kind.name != "llvm":
        raise ValueError(f"kernels are written for LLVM targets, found {target.kind.name!r}")
    triple = str(target.attrs.get("mtriple", "") or codegen.llvm_get_system_triple())
    architecture = triple.partition("-")[0]

    def has(*features: str) -> bool:
        return bool(codegen.llvm_cpu_has_features(list(features), target))

    if architecture in ("x86_64", "amd64", "i386", "i486", "i586", "i686"):
        fused = has("fma")
        if has("avx512f", "avx512bw", "avx512dq", "avx512vl"):
            unit: PopcountUnit = "vpopcntq" if has("avx512vpopcntdq") else "avx512_lookup"
            vendor: Vendor = "intel" if str(target.attrs.get("mcpu", "")).startswith(_INTEL_AVX512) else "any"
            return Isa(unit, 512, unit, fused, ternary_logic=True, gfni=has("gfni"), vendor=vendor)
        if has("avx2"):
            return Isa("avx2", 256, "avx2_lookup", fused, ternary_logic=False, gfni=has("gfni"))
        return Isa("x86_portable", 128, "portable", fused, ternary_logic=False, gfni=False)
    if architecture in ("aarch64", "arm64") and has("neon"):
        return Isa("neon", 128, "neon", fused_multiply_add=True, ternary_logic=False, gfni=False)
    if architecture.startswith(("arm", "thumb")):
        # LLVM turns the portable popcount into vcnt.8 + vpaddl where NEON is there; its fma needs VFPv4.
        return Isa("arm_portable", 128, "portable", has("vfp4"), ternary_logic=False, gfni=False)
    return Isa("portable", 128, "portable", fused_multiply_add=False, ternary_logic=False, gfni=False)
