"""CPU features that compiled code may use, and how a host says it has them.

Code generation enables a set of LLVM *features*; a library that uses one on a CPU without it dies on an illegal
instruction. So each feature that LLVM's code generator can emit from plain vector code, or that a kernel of this
project asks for by intrinsic, is listed here with the flag Linux reports for it in ``/proc/cpuinfo``. The list is what
a library's manifest records and what ``load`` checks. Features that only a few never-emitted instructions need
(``sha``, ``mwaitx``, ``pku`` ...) are left out: virtual machines mask them freely, and they cannot matter.

Needs neither TVM nor LLVM, so a machine with only the runtime can check a library.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

Architecture = Literal["x86_64", "aarch64", "arm"]

# LLVM feature -> flag in /proc/cpuinfo ("flags" on x86, "Features" on ARM).
_X86_FLAGS = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "movbe": "movbe",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "fma4": "fma4",
    "xop": "xop",
    "tbm": "tbm",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
    "gfni": "gfni",
    "avx512f": "avx512f",
    "avx512cd": "avx512cd",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "egpr": "apx",
    "ndd": "apx",
    "ccmp": "apx",
    "nf": "apx",
    "zu": "apx",
}
_AARCH64_FLAGS = {
    "fp-armv8": "fp",
    "neon": "asimd",
    "crc": "crc32",
    "lse": "atomics",
    "rdm": "asimdrdm",
    "rcpc": "lrcpc",
    "fullfp16": "asimdhp",
    "fp16fml": "asimdfhm",
    "dotprod": "asimddp",
    "jsconv": "jscvt",
    "complxnum": "fcma",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "sme2": "sme2",
    "cssc": "cssc",
    "mops": "mops",
}
_ARM_FLAGS = {
    "vfp2": "vfp",
    "vfp3": "vfpv3",
    "vfp4": "vfpv4",
    "d32": "vfpd32",
    "neon": "neon",
    "hwdiv": "idivt",
    "hwdiv-arm": "idiva",
    "crc": "crc32",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
}
_FLAGS: dict[Architecture, dict[str, str]] = {"x86_64": _X86_FLAGS, "aarch64": _AARCH64_FLAGS, "arm": _ARM_FLAGS}

# A 64-bit kernel lists another vocabulary when asked from a 32-bit process: ARMv8 implies these ARMv7 flags.
_ARMV8_IMPLIES = frozenset({"vfp", "vfpv3", "vfpv4", "vfpd32", "neon", "idiva", "idivt"})

_MACHINES: dict[str, Architecture] = {
    "x86_64": "x86_64",
    "amd64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "armv7l": "arm",
    "armv8l": "arm",
}


def host_architecture() -> Architecture | None:
    """Return the architecture of this process' machine, or None where nothing compiled here can run."""
    return _MACHINES.get(platform.machine().lower())


def checkable_features(architecture: Architecture) -> frozenset[str]:
    """Return the LLVM names of all features that a library for ``architecture`` can require."""
    return frozenset(_FLAGS[architecture])


def host_features(cpuinfo: str | None = None) -> frozenset[str] | None:
    """Return the LLVM names of the features this machine has.

    ``cpuinfo`` is the text to read in place of ``/proc/cpuinfo``. Returns None where there is no such file or it lists
    no features (then nothing can be checked, and the CPU's name has to be believed).
    """
    architecture = host_architecture()
    if architecture is None:
        return None
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    flags = _parse_flags(cpuinfo)
    if not flags:
        return None
    if architecture == "arm" and flags & {"asimd", "aes", "crc32"}:
        flags |= _ARMV8_IMPLIES
    return frozenset(feature for feature, flag in _FLAGS[architecture].items() if flag in flags)


def missing_features(required: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``required`` (LLVM names) that this machine lacks, in the given order."""
    available = host_features()
    if available is None:
        return ()
    return tuple(feature for feature in required if feature not in available)


def _parse_flags(cpuinfo: str) -> set[str]:
    """Return the flags that *every* core lists: on big.LITTLE a thread can land on any of them."""
    common: set[str] | None = None
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator and key.strip() in ("flags", "Features"):
            flags = set(value.split())
            common = flags if common is None else common & flags
    return common or set()
