from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import tvm

from bnn_compiler.schedules.isa import Isa, detect_isa

_ARM = {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}
_ARM_V7 = {"mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a7", "mattr": ["+neon"]}
_ARM_V7_OLD = {"mtriple": "armv7l-linux-gnueabihf", "mcpu": "cortex-a8", "mattr": ["+neon"]}
_X86 = {"mtriple": "x86_64-linux-gnu"}

VPOPCNTQ = Isa("vpopcntq", 512, "vpopcntq", fused_multiply_add=True, ternary_logic=True, gfni=True)
AVX512 = Isa("avx512_lookup", 512, "avx512_lookup", fused_multiply_add=True, ternary_logic=True, gfni=False)
AVX2 = Isa("avx2", 256, "avx2_lookup", fused_multiply_add=True, ternary_logic=False, gfni=False)
SSE = Isa("x86_portable", 128, "portable", fused_multiply_add=False, ternary_logic=False, gfni=False)
NEON = Isa("neon", 128, "neon", fused_multiply_add=True, ternary_logic=False, gfni=False)
ARM_V7 = Isa("arm_portable", 128, "portable", fused_multiply_add=True, ternary_logic=False, gfni=False)
PORTABLE = Isa("portable", 128, "portable", fused_multiply_add=False, ternary_logic=False, gfni=False)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({**_X86, "mcpu": "znver4"}, VPOPCNTQ),
        ({**_X86, "mcpu": "icelake-server"}, dataclasses.replace(VPOPCNTQ, vendor="intel")),
        ({**_X86, "mcpu": "sapphirerapids"}, dataclasses.replace(VPOPCNTQ, vendor="intel")),
        ({**_X86, "mcpu": "skylake-avx512"}, dataclasses.replace(AVX512, vendor="intel")),
        ({**_X86, "mcpu": "x86-64-v4"}, AVX512),
        ({**_X86, "mcpu": "x86-64-v4", "mattr": ["+avx512vpopcntdq"]}, dataclasses.replace(VPOPCNTQ, gfni=False)),
        ({**_X86, "mcpu": "haswell"}, AVX2),
        ({**_X86, "mcpu": "alderlake"}, dataclasses.replace(AVX2, gfni=True)),
        # AVX-512 without BW is no AVX-512 for these kernels.
        ({**_X86, "mcpu": "skylake-avx512", "mattr": ["-avx512bw"]}, AVX2),
        ({**_X86, "mcpu": "sandybridge"}, SSE),
        ({**_X86, "mcpu": "x86-64"}, SSE),
        (_ARM, NEON),
        (_ARM_V7, ARM_V7),
        (_ARM_V7_OLD, dataclasses.replace(ARM_V7, fused_multiply_add=False)),
        ({"mtriple": "riscv64-linux-gnu"}, PORTABLE),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.name,
)
def test_features_decide(config: dict[str, Any], expected: Isa) -> None:
    assert detect_isa(tvm.target.Target({"kind": "llvm", **config})) == expected


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"LLVM targets, found 'c'"):
        detect_isa(tvm.target.Target({"kind": "c"}))
