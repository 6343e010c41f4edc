"""Target texts: what they imply, what is refused and how, and that nothing accepted makes LLVM abort."""

from __future__ import annotations

import platform
import random
import subprocess
import sys

import pytest
import tvm
from tvm.target import codegen

from bnn_compiler import target
from bnn_compiler.cpu_features import checkable_features, host_features
from bnn_compiler.errors import TargetError
from bnn_compiler.target import parse_target

on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="describes an x86-64 host")


@pytest.mark.parametrize(
    ("text", "triple", "cpu"),
    [
        ("llvm -mcpu=cortex-a72", "aarch64-linux-gnu", "cortex-a72"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72", "aarch64-linux-gnu", "cortex-a72"),
        ("llvm -mcpu=neoverse-n1 -mattr=+sve", "aarch64-linux-gnu", "neoverse-n1"),
        ("llvm -mtriple=aarch64-linux-gnu", "aarch64-linux-gnu", "generic"),
        ("llvm -mcpu=cortex-a9", "armv7l-linux-gnueabihf", "cortex-a9"),
        ("llvm -mcpu=cortex-a7 -mfloat-abi=hard", "armv7l-linux-gnueabihf", "cortex-a7"),
        ("llvm -mtriple=armv7a-linux-gnueabihf -mcpu=cortex-a72", "armv7a-linux-gnueabihf", "cortex-a72"),
        ("llvm -mcpu=znver4", "x86_64-linux-gnu", "znver4"),
        ("llvm -mcpu=x86-64", "x86_64-linux-gnu", "x86-64"),
        ("llvm --mcpu=haswell", "x86_64-linux-gnu", "haswell"),
    ],
)
def test_cpu_implies_triple(text: str, triple: str, cpu: str) -> None:
    parsed = parse_target(text)
    assert (parsed.triple, parsed.cpu) == (triple, cpu)
    assert str(parsed.tvm_target.attrs["mtriple"]) == triple
    assert str(parsed.tvm_target.attrs["mcpu"]) == cpu
    assert int(parsed.tvm_target.attrs["num-cores"]) >= 1


@pytest.mark.parametrize(
    "text", ["native", "llvm", "llvm -mcpu=cortex-a9", "llvm -mcpu=znver4 -mattr=-avx512f -num-cores=4"]
)
def test_canonical_text_gives_the_same_target(text: str) -> None:
    parsed = parse_target(text)
    again = parse_target(parsed.text)
    assert again == parsed
    assert again.text == parsed.text
    assert str(again.tvm_target) == str(parsed.tvm_target)


def test_features_follow_cpu_and_attributes() -> None:
    assert {"avx512vpopcntdq", "gfni"} <= set(parse_target("llvm -mcpu=znver4").features)
    masked = parse_target("llvm -mcpu=znver4 -mattr=-avx512f").features
    assert "avx2" in masked
    assert not any(feature.startswith("avx512") for feature in masked)
    assert "dotprod" not in parse_target("llvm -mcpu=cortex-a72").features
    assert "dotprod" in parse_target("llvm -mcpu=cortex-a72 -mattr=+dotprod").features


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected 'native' or 'llvm"),
        ("cuda", "expected 'native' or 'llvm"),
        ("llvm 'unclosed", "No closing quotation"),
        ("llvm -mcpu=znvr4", "unknown CPU 'znvr4'; did you mean znver4"),
        ("llvm -mcpu=cortex-a27", "did you mean cortex-a"),
        ("llvm -mtriple=aarch64-linux-gnu -mcpu=znver4", "unknown CPU 'znver4' for aarch64-linux-gnu"),
        ("llvm -mcpu=qqqqqqqqqq", "llc -mtriple"),
        ("llvm -mcup=znver4", "unknown flag '-mcup=znver4'; did you mean -mcpu=...?"),
        ("llvm -xyz=1", "known flags: -mcpu"),
        ("llvm znver4", "unknown flag 'znver4'"),
        ("llvm -mcpu", "-mcpu needs a value"),
        ("llvm -mcpu=", "-mcpu needs a value"),
        ("llvm -mcpu=znver4 -mcpu=znver3", "given twice"),
        ("llvm -mcpu=znver4 -mattr=avx2", "takes +feature or -feature"),
        ("llvm -mcpu=znver4 -mattr=+avx2,", "takes +feature or -feature"),
        ("llvm -mcpu=znver4 -mattr=+avx52", "did you mean avx2"),
        ("llvm -mcpu=cortex-a72 -mattr=+avx2", "unknown aarch64 feature 'avx2'"),
        # Each of these makes LLVM abort the process when it gets as far as generating code.
        ("llvm -mcpu=i386", "lacks 64bit"),
        ("llvm -mcpu=znver4 -mattr=-sse2", "lacks sse2"),
        ("llvm -mcpu=cortex-a72 -mattr=-neon", "lacks neon"),
        ("llvm -mcpu=cortex-m4", "lacks aclass"),
        ("llvm -mtriple=riscv64-linux-gnu", "supported triples"),
        ("llvm -mtriple=aarch64-apple-darwin -mcpu=apple-m4", "supported triples"),
        ("llvm -mtriple=x86_64-linux-gnux32", "supported triples"),
        ("llvm -mtriple=nonsense", "supported triples"),
        ("llvm -mcpu=znver4 -mfloat-abi=hard", "only means something on 32-bit ARM"),
        ("llvm -mcpu=cortex-a9 -mfloat-abi=weird", "hard or soft"),
        ("llvm -mcpu=cortex-a9 -mfloat-abi=soft", "contradicts the triple"),
        ("llvm -mcpu=znver4 -num-cores=0", "from 1 to 4096"),
        ("llvm -mcpu=znver4 -num-cores=²", "from 1 to 4096"),
        ("native -mcpu=znver4", "contradicts 'native'"),
    ],
)
def test_refused_in_one_line(text: str, words: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


@on_x86
def test_native_subtracts_what_the_machine_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "znver4")
    available = frozenset({"sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2"})
    monkeypatch.setattr(target, "host_features", lambda: available)
    native = parse_target("native")
    assert native.cpu == "znver4"
    assert set(native.features) == available
    assert "-avx512f" in native.text
    assert native.is_host
    assert not parse_target("llvm -mcpu=znver4").is_host


@on_x86
def test_native_adds_what_the_name_does_not_imply(monkeypatch: pytest.MonkeyPatch) -> None:
    # A CPU newer than LLVM is detected as some generic name.
    monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: "x86-64")
    monkeypatch.setattr(target, "host_features", lambda: frozenset({"sse4.2", "avx", "avx2", "gfni"}))
    assert {"avx2", "gfni"} <= set(parse_target("native").features)


def test_native_runs_here() -> None:
    native = parse_target("native")
    assert native.is_host
    available = host_features()
    assert available is None or available.issuperset(native.features)


@on_x86
def test_features_count_only_where_every_core_has_them() -> None:
    cpuinfo = "processor : 0\nflags\t\t: sse4_1 avx2 avx512f\nprocessor : 1\nflags\t\t: sse4_1 avx2\n"
    assert host_features(cpuinfo) == frozenset({"sse4.1", "avx2"})
    assert host_features("processor : 0\n") is None


def test_every_cpu_is_refused_or_compiles() -> None:
    """LLVM must not abort for any name it lists: some of each architecture, with one feature more and one less."""
    seeded = random.Random(0)
    texts = []
    for triple in ("x86_64-linux-gnu", "aarch64-linux-gnu", "armv7l-linux-gnueabihf"):
        probe = tvm.target.Target({"kind": "llvm", "mtriple": triple})
        features = sorted(checkable_features(parse_target(f"llvm -mtriple={triple}").architecture))
        for cpu in seeded.sample(sorted(str(name) for name in codegen.llvm_get_cpu_archlist(probe)), 12):
            more, less = seeded.sample(features, 2)
            texts.append(f"llvm -mtriple={triple} -mcpu={cpu} -mattr=+{more},-{less}")
    script = """
import sys
import tvm
from tvm import te
from bnn_compiler.errors import TargetError
from bnn_compiler.target import parse_target
a = te.placeholder((64,), "float32")
kernel = te.create_prim_func([a, te.compute((64,), lambda i: te.exp(a[i]) * 2.0 + 1.0)])
for text in sys.stdin.read().splitlines():
    try:
        target = parse_target(text)
    except TargetError:
        print("refused", text)
    else:
        tvm.tirx.build(kernel, target=target.tvm_target)
        print("compiled", text)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(texts), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    verdicts = [line.split()[0] for line in result.stdout.splitlines()]
    assert len(verdicts) == len(texts)
    assert verdicts.count("compiled") >= len(texts) // 3
    assert "not recognized" not in result.stderr
