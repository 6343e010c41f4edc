"""Which kernel parameters are relaxed, and that code for them takes any address where code for the others does not."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import IRModule, relax, tirx

from bnn_compiler.passes.relax_buffer_alignment import RelaxBufferAlignment
from bnn_compiler.passes.return_through_parameters import ReturnThroughParameters
from bnn_compiler.target import parse_target
from tests.passes.test_return_through_parameters import lowered
from tests.small_relax_modules import applied, elementwise, many_results

ROOT = Path(__file__).resolve().parents[2]


def alignments(module: IRModule) -> dict[str, list[int]]:
    return {
        str(global_var.name_hint): [int(parameter.ty.data_alignment) for parameter in function.params]
        for global_var, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }


def test_only_the_callers_memory_is_relaxed() -> None:
    relaxed = alignments(applied(lowered(many_results()), ReturnThroughParameters(), RelaxBufferAlignment()))
    assert relaxed["relu"] == [4, 64]  # input; intermediate
    # Called twice: by main with (intermediate, constant, output), by layer_0 with (input, constant, output).
    assert relaxed["matmul"] == [4, 64, 4]
    assert relaxed["add"] == [4, 4]  # a view of an output; an output
    assert relaxed["copy_result"] == [4, 4]


def test_without_destination_passing_results_stay_aligned() -> None:
    assert alignments(applied(lowered(elementwise()), RelaxBufferAlignment()))["add"] == [4, 4, 64]


def test_idempotent() -> None:
    once = applied(lowered(many_results()), ReturnThroughParameters(), RelaxBufferAlignment())
    tvm.ir.assert_structural_equal(applied(once, RelaxBufferAlignment()), once)


@pytest.mark.parametrize(("dtype", "alignment"), [("int8", 1), ("bool", 1), ("float16", 2), ("int32", 4), ("int64", 8)])
def test_alignment_is_that_of_the_element(dtype: str, alignment: int) -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64,), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.equal(x, x))
        builder.emit_func_output(result)
    relaxed = alignments(applied(lowered(builder.get()), ReturnThroughParameters(), RelaxBufferAlignment()))
    assert relaxed["equal"] == [alignment, alignment, 1]


@pytest.mark.parametrize("relaxed", [True, False])
def test_generated_code(relaxed: bool) -> None:
    """LLVM is told the truth about alignment, and the check on entry that refuses other addresses is gone."""
    module = applied(lowered(elementwise()), ReturnThroughParameters())
    if relaxed:
        module = applied(module, RelaxBufferAlignment())
    schedule = tvm.s_tir.Schedule(module["add"])
    block = schedule.get_sblock("T_add")
    _, inner = schedule.split(schedule.fuse(*schedule.get_loops(block)), [None, 16])
    schedule.vectorize(inner)
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"})
    kernel = schedule.mod["main"].with_attr("global_symbol", "add")
    code = tvm.tirx.build(kernel, target=target).inspect_source("ll")
    loads = [line for line in code.splitlines() if "load <16 x float>" in line]
    assert loads
    assert all(line.rstrip().split(",")[2].strip() == ("align 4" if relaxed else "align 64") for line in loads)


@pytest.mark.parametrize("relaxed", [True, False])
def test_misaligned_array(relaxed: bool) -> None:
    """The near miss that shows why the pass exists: without it the process dies, so it runs in another one."""
    script = """
import sys
import numpy as np
import tvm
from tests.passes.test_relax_buffer_alignment import misaligned_call
misaligned_call(relaxed=sys.argv[1] == "True")
"""
    if not relaxed and platform.machine() != "x86_64":
        pytest.skip("only x86 has vector moves that fault on misalignment")
    result = subprocess.run(
        [sys.executable, "-c", script, str(relaxed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if relaxed:
        assert result.returncode == 0, result.stderr
    else:
        assert result.returncode == -signal.SIGSEGV or "Misaligned" in result.stderr


def misaligned_call(*, relaxed: bool) -> None:
    """Add two arrays that are 4 bytes off a 64-byte boundary."""
    module = applied(lowered(elementwise()), ReturnThroughParameters())
    if relaxed:
        module = applied(module, RelaxBufferAlignment())
    block = np.ones(4096 + 128, np.uint8).view(np.float32)
    start = (-block.ctypes.data % 64 + 4) // 4
    array = block[start : start + 1024].reshape(1, 1024)
    result = np.zeros_like(block)[start : start + 1024].reshape(1, 1024)
    tvm.tirx.build(module["add"].with_attr("global_symbol", "add"), target=parse_target("native").tvm_target)["add"](
        array, array, result
    )
    np.testing.assert_array_equal(result, array + array)
