"""From the text of ``--target`` to a TVM target that LLVM is known to accept.

TVM takes any CPU name, prints a line and compiles for a generic one; some combinations (a CPU without 64-bit mode,
NEON switched off under the AArch64 ABI) make LLVM abort the whole process. So everything is checked here first:

1. the first word is ``native`` or ``llvm``, the rest are ``-flag=value`` of a closed set;
2. the triple is one this project builds for (Linux on x86_64, aarch64 or armv7);
3. LLVM lists the CPU for that triple;
4. each ``-mattr`` names a feature that can be checked on a host when the library is loaded (or a tuning hint);
5. what remains enabled holds the ABI's baseline.
"""

from __future__ import annotations

import difflib
import platform
import shlex
from dataclasses import dataclass, field

import tvm
from tvm.target import codegen

from bnn_compiler.cpu_features import Architecture, checkable_features, host_architecture, host_features
from bnn_compiler.errors import TargetError

_DEFAULT_TRIPLES: dict[Architecture, str] = {
    "x86_64": "x86_64-linux-gnu",
    "aarch64": "aarch64-linux-gnu",
    "arm": "armv7l-linux-gnueabihf",
}
_BASELINE_CPUS: dict[Architecture, str] = {"x86_64": "x86-64", "aarch64": "generic", "arm": "generic"}
# Without these LLVM aborts (x86, aarch64), or the code needs a kernel older than any supported one (arm).
_BASELINE_FEATURES: dict[Architecture, frozenset[str]] = {
    "x86_64": frozenset({"64bit", "sse2"}),
    "aarch64": frozenset({"fp-armv8", "neon"}),
    "arm": frozenset({"aclass", "v7", "vfp3d16"}),
}
_ARM_ARCHS = ("arm", "armv7", "armv7a", "armv7l", "armv7hl")
_FLAG_NAMES = ("-mcpu", "-mtriple", "-mattr", "-mfloat-abi", "-num-cores")
_TUNING_FEATURES = frozenset({"prefer-128-bit", "prefer-256-bit"})
# Only a tuner reads it. A fixed number, because the target's text is part of the artifact and the artifact must not
# depend on how many cores the compiling machine happens to have.
_DEFAULT_NUM_CORES = 1


@dataclass(frozen=True)
class CompileTarget:
    """A checked target.

    ``text`` is canonical and complete: ``parse_target(target.text)`` gives an equal target on any machine, also where
    the original text was ``native``. ``features`` are the LLVM names of the CPU features that compiled code may use,
    sorted, reduced to those that a host can be asked for (``cpu_features``). ``is_host`` says whether this machine can
    run the code.
    """

    text: str
    tvm_target: tvm.target.Target = field(compare=False)  # TVM compares targets by identity
    triple: str
    cpu: str
    features: tuple[str, ...]
    is_host: bool

    @property
    def architecture(self) -> Architecture:
        """The instruction set family of ``triple``."""
        return _triple_architecture(self.triple)


def parse_target(text: str) -> CompileTarget:
    """Parse ``native`` or ``llvm [-mcpu=NAME] [-mtriple=T] [-mattr=+a,-b] [-mfloat-abi=hard|soft] [-num-cores=N]``.

    A CPU name alone implies its triple: the host's where that knows the name, else AArch64, x86-64 or ARMv7 Linux.

    Raises:
        TargetError: the text is not of this form, or names a CPU or feature unknown to LLVM.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(f"target {text!r}: {error}") from error
    if not words or words[0] not in ("native", "llvm"):
        raise TargetError(f"target {text!r}: expected 'native' or 'llvm -mcpu=NAME [-mattr=+feature,...]'")
    flags = _parse_flags(text, words[1:])
    attributes = _parse_attributes(text, flags.get("-mattr"))
    if words[0] == "native":
        for flag in ("-mcpu", "-mtriple", "-mfloat-abi"):
            if flag in flags:
                raise TargetError(f"target {text!r}: {flag} contradicts 'native'; write 'llvm {flag}={flags[flag]}'")
        triple, cpu, detected = _detect_host()
        attributes = {**detected, **attributes}
    else:
        triple, cpu = _resolve_cpu(text, flags.get("-mcpu"), flags.get("-mtriple"))
    architecture = _triple_architecture(triple)
    _check_attributes(text, architecture, attributes)
    config: dict[str, str | int | list[str]] = {"kind": "llvm", "mtriple": triple, "mcpu": cpu}
    if attributes:
        config["mattr"] = [f"{'+' if on else '-'}{name}" for name, on in sorted(attributes.items())]
    if architecture == "arm":
        config["mfloat-abi"] = _parse_float_abi(text, flags.get("-mfloat-abi"), triple)
    elif "-mfloat-abi" in flags:
        raise TargetError(f"target {text!r}: -mfloat-abi only means something on 32-bit ARM, not on {triple}")
    config["num-cores"] = _parse_num_cores(text, flags.get("-num-cores"))
    return _make_target(text, architecture, config)


def _make_target(text: str, architecture: Architecture, config: dict[str, str | int | list[str]]) -> CompileTarget:
    triple, cpu = str(config["mtriple"]), str(config["mcpu"])
    tvm_target = tvm.target.Target(config)
    enabled = frozenset(str(name) for name in codegen.llvm_get_cpu_features(tvm_target))
    lacking = sorted(_BASELINE_FEATURES[architecture] - enabled)
    if lacking:
        raise TargetError(f"target {text!r}: {cpu} lacks {', '.join(lacking)}, which {triple} needs")
    features = tuple(sorted(enabled & checkable_features(architecture)))
    return CompileTarget(_canonical_text(config), tvm_target, triple, cpu, features, _runs_here(architecture, features))


def _canonical_text(config: dict[str, str | int | list[str]]) -> str:
    words = ["llvm"]
    for key, value in config.items():
        if key != "kind" and not (key == "num-cores" and value == _DEFAULT_NUM_CORES):
            words.append(f"-{key}={','.join(value) if isinstance(value, list) else value}")
    return " ".join(words)


def _runs_here(architecture: Architecture, features: tuple[str, ...]) -> bool:
    if platform.system() != "Linux" or architecture != host_architecture():
        return False
    available = host_features()
    return available is None or available.issuperset(features)


def _parse_flags(text: str, words: list[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if name.startswith("--"):
            name = name[1:]
        if name not in _FLAG_NAMES:
            near = difflib.get_close_matches(name, _FLAG_NAMES, n=1)
            hint = f"did you mean {near[0]}=...?" if near else f"known flags: {', '.join(_FLAG_NAMES)}"
            raise TargetError(f"target {text!r}: unknown flag {word!r}; {hint}")
        if not separator or not value:
            raise TargetError(f"target {text!r}: {name} needs a value, as in {name}=...")
        if name in flags:
            raise TargetError(f"target {text!r}: {name} is given twice")
        flags[name] = value
    return flags


def _parse_attributes(text: str, value: str | None) -> dict[str, bool]:
    attributes: dict[str, bool] = {}
    for item in (value or "").split(","):
        if not item and value is None:
            break
        if item[:1] not in ("+", "-") or len(item) < 2:
            raise TargetError(f"target {text!r}: -mattr takes +feature or -feature, separated by commas; got {item!r}")
        attributes[item[1:]] = item[0] == "+"
    return attributes


def _check_attributes(text: str, architecture: Architecture, attributes: dict[str, bool]) -> None:
    known = checkable_features(architecture) | _BASELINE_FEATURES[architecture] | _TUNING_FEATURES
    for name in attributes:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(sorted(known))}"
            raise TargetError(f"target {text!r}: unknown {architecture} feature {name!r}; {hint}")


def _parse_float_abi(text: str, value: str | None, triple: str) -> str:
    implied = "hard" if triple.endswith("hf") else "soft"
    if value not in (None, "hard", "soft"):
        raise TargetError(f"target {text!r}: -mfloat-abi is hard or soft, not {value!r}")
    if value not in (None, implied):
        raise TargetError(f"target {text!r}: -mfloat-abi={value} contradicts the triple {triple}")
    return implied


def _parse_num_cores(text: str, value: str | None) -> int:
    if value is None:
        return _DEFAULT_NUM_CORES
    if not value.isascii() or not value.isdigit() or not 1 <= int(value) <= 4096:
        raise TargetError(f"target {text!r}: -num-cores is a number from 1 to 4096, not {value!r}")
    return int(value)


def _resolve_cpu(text: str, cpu: str | None, triple: str | None) -> tuple[str, str]:
    """Return (triple, cpu), one of which may be implied by the other."""
    if triple is not None:
        architecture = _triple_architecture(triple, text)
        cpu = cpu or _BASELINE_CPUS[architecture]
        if cpu in _known_cpus(triple):
            return triple, cpu
        raise TargetError(f"target {text!r}: unknown CPU {cpu!r} for {triple}; {_near_cpus(cpu, [triple])}")
    host = host_architecture()
    if cpu is None:
        if host is None:
            raise TargetError(f"target {text!r}: name a CPU with -mcpu; this machine's own is not supported")
        return _DEFAULT_TRIPLES[host], _BASELINE_CPUS[host]
    # Some names are listed for several architectures: the host's own comes first, 64-bit ARM before 32-bit.
    order = sorted(_DEFAULT_TRIPLES, key=lambda architecture: (architecture != host, architecture == "arm"))
    triples = [_DEFAULT_TRIPLES[architecture] for architecture in order]
    for candidate in triples:
        if cpu in _known_cpus(candidate):
            return candidate, cpu
    raise TargetError(f"target {text!r}: unknown CPU {cpu!r}; {_near_cpus(cpu, triples)}")


def _known_cpus(triple: str) -> frozenset[str]:
    probe = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    return frozenset(str(name) for name in codegen.llvm_get_cpu_archlist(probe))


def _near_cpus(cpu: str, triples: list[str]) -> str:
    known = sorted(set().union(*(_known_cpus(triple) for triple in triples)))
    near = difflib.get_close_matches(cpu, known, n=4, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else "see `llc -mtriple=... -mcpu=help` for the names LLVM knows"


def _triple_architecture(triple: str, text: str | None = None) -> Architecture:
    name, _, rest = triple.partition("-")
    system = rest.removeprefix("unknown-").removeprefix("pc-").removeprefix("none-")
    architecture: Architecture | None = None
    if name in ("x86_64", "aarch64") and system == "linux-gnu":
        architecture = "x86_64" if name == "x86_64" else "aarch64"
    elif name in _ARM_ARCHS and system in ("linux-gnueabi", "linux-gnueabihf"):
        architecture = "arm"
    if architecture is None:
        supported = ", ".join(_DEFAULT_TRIPLES.values())
        raise TargetError(f"target {text or triple!r}: cannot build for {triple!r}; supported triples: {supported}")
    return architecture


def _detect_host() -> tuple[str, str, dict[str, bool]]:
    """Return (triple, cpu, attributes that correct the name).

    LLVM derives the name from the model number, but a hypervisor may mask features that the name implies, and a CPU
    newer than LLVM gets an older name: what ``/proc/cpuinfo`` says is what counts.
    """
    architecture = host_architecture()
    if architecture is None or platform.system() != "Linux":
        raise TargetError(
            f"target 'native': {platform.system()} on {platform.machine()} is not supported; name a target with -mcpu"
        )
    triple = _DEFAULT_TRIPLES[architecture]
    cpu = str(codegen.llvm_get_system_cpu())
    if cpu not in _known_cpus(triple) or cpu == "generic":
        cpu = _BASELINE_CPUS[architecture]
    available = host_features()
    if available is None:
        return triple, cpu, {}
    probe = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    implied = frozenset(str(name) for name in codegen.llvm_get_cpu_features(probe))
    corrections = dict.fromkeys((implied & checkable_features(architecture)) - available, False)
    corrections.update(dict.fromkeys(available - implied, True))
    return triple, cpu, corrections


def target_in_scope(given: tvm.target.Target | None) -> tvm.target.Target:
    """``given``, else the target of the enclosing ``with target:``.

    Raises:
        TargetError: there is neither.
    """
    target = given or tvm.target.Target.current(allow_none=True)
    if target is None:
        raise TargetError("no target: give the pass one, or apply it inside `with target:`")
    return target
