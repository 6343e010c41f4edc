"""Find a linker for a target and link object files into a shared library with it.

Tried in order: the machine's own ``cc``, ``gcc`` or ``clang`` when it is of the target's architecture; the target's GNU
cross compiler (Debian's ``gcc-aarch64-linux-gnu`` and the like); PyPI's ``ziglang``, which links for every target.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bnn_compiler.cpu_features import Architecture, host_architecture
from bnn_compiler.errors import ToolchainError
from bnn_compiler.target import CompileTarget

_GNU_PREFIXES: dict[Architecture, str] = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "arm": "arm-linux-gnueabi",
}
_DEBIAN_PACKAGES: dict[str, str] = {
    "x86_64-linux-gnu": "gcc-x86-64-linux-gnu",
    "aarch64-linux-gnu": "gcc-aarch64-linux-gnu",
    "arm-linux-gnueabihf": "gcc-arm-linux-gnueabihf",
    "arm-linux-gnueabi": "gcc-arm-linux-gnueabi",
}
# The C library that TVM's own wheels (manylinux_2_28) ask for.
_GLIBC = "2.28"
# No crt files: the library has no constructors, and nothing but a C library function (expf) is called from outside.
# No build id, no debug sections: they would only carry what differs from machine to machine.
_LINK_FLAGS = (
    "-shared",
    "-fPIC",
    "-nostartfiles",
    "-Wl,--build-id=none",
    # What is called from outside has its name in the dynamic symbol table.
    "-Wl,--strip-all",
    "-Wl,-z,noexecstack",
    # Calls between the object files of a library stay inside it, whatever names the process has loaded before.
    "-Wl,-Bsymbolic",
)


@dataclass(frozen=True)
class Linker:
    """A command that links for one target; ``version`` is what it says of itself."""

    command: tuple[str, ...]
    version: str


def find_linker(target: CompileTarget) -> Linker:
    """Return a linker for ``target``.

    Raises:
        ToolchainError: there is none; names what to install.
    """
    prefix = _gnu_prefix(target)
    names = [f"{prefix}-gcc"]
    if platform.system() == "Linux" and target.architecture == host_architecture():
        names = ["cc", "gcc", "clang", *names]
    commands: list[tuple[str, ...]] = [(path,) for name in names if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang") is not None:
        # lld drops what is unused of the 240 KB of helpers that zig brings. (GNU ld would drop the manifest with it.)
        zig = (sys.executable, "-m", "ziglang", "cc", "-target", f"{prefix}.{_GLIBC}", "-Wl,--gc-sections")
        commands.append(zig)
    for command in commands:
        version = _version(command)
        if version is not None:
            return Linker(command, version)
    debian = "gcc" if "cc" in names else _DEBIAN_PACKAGES[prefix]
    raise ToolchainError(
        f"no linker for {target.triple}: install `{debian}` (Debian, Ubuntu) or `pip install ziglang` "
        "(the extra `bnn-compiler[cross]`)"
    )


def link_shared(linker: Linker, inputs: Sequence[Path], output: Path) -> None:
    """Link object and assembler files into the shared library ``output``.

    Raises:
        ToolchainError: the linker failed; carries its first line.
    """
    # The linker runs where its inputs are and is given bare names, so no path can find its way into the output.
    command = [*linker.command, *_LINK_FLAGS, "-o", output.name, *(path.name for path in inputs), "-lm"]
    result = _run(command, output.parent)
    if result.returncode != 0:
        raise ToolchainError(f"linking with {linker.command[0]} failed: {_cause(result.stderr or result.stdout)}")


def _gnu_prefix(target: CompileTarget) -> str:
    prefix = _GNU_PREFIXES[target.architecture]
    return prefix + "hf" if target.triple.endswith("hf") else prefix


def _version(command: tuple[str, ...]) -> str | None:
    """Return the first line of ``command --version``, or None where the command does not run."""
    result = _run([*command, "--version"], None)
    lines = result.stdout.splitlines()
    return lines[0].strip() if result.returncode == 0 and lines else None


def _run(command: list[str], directory: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    try:
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _cause(text: str) -> str:
    """Return the line of a linker's output that says why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower() or "No space" in line), (lines or ["no output"])[0])
