"""``main`` as one call: same results, memory planned once and reported, and what stays with the virtual machine."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from tvm import IRModule, relax, te, tirx

from bnn_compiler.artifact import read_manifest
from bnn_compiler.build import build_library, build_passes
from bnn_compiler.passes.run_in_one_call import BY_KERNEL, HOST, RunInOneCall, memory_report
from bnn_compiler.runtime import CompiledModel, load
from bnn_compiler.target import parse_target
from tests.small_relax_modules import WEIGHT, elementwise, many_results, parallel

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float32]

BLOCK = (8, 512, 512)  # 8 MiB


def lowered(module: IRModule) -> IRModule:
    target = parse_target("native").tvm_target
    with target:
        return build_passes()(module)


def built(module: IRModule, folder: Path) -> CompiledModel:
    build_library(module, parse_target("native"), {}, folder / "model.so")
    return load(folder / "model.so")


def chain(shape: tuple[int, ...], length: int) -> IRModule:
    """x -> sin(sin(… x)) + x, each sine a kernel of its own."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value: relax.Expr = x
            for _ in range(length):
                value = builder.emit(relax.op.sin(value))
            result = builder.emit_output(relax.op.add(value, x))
        builder.emit_func_output(result)
    return builder.get()


def copied_by_the_runtime() -> IRModule:
    """x -> sin(copy(x)), where ``copy`` is a function of TVM's runtime."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            copy = relax.call_pure_packed("vm.builtin.copy", x, ty_args=[relax.TensorType((4,), "float32")])
            result = builder.emit_output(relax.op.sin(builder.emit(copy)))
        builder.emit_func_output(result)
    return builder.get()


def callees(function: relax.Function) -> list[Any]:
    """What the calls in ``function`` call, in order."""
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    return [value.op for value in values if isinstance(value, tvm.ir.Call)]


def by_kernel(model: CompiledModel, *arrays: FloatArray) -> list[Array]:
    return model.run_function(BY_KERNEL, list(arrays))


@pytest.mark.parametrize("make", [many_results, elementwise, parallel])
def test_same_bits_as_kernel_by_kernel(make: Callable[[], IRModule], tmp_path: Path) -> None:
    model = built(make(), tmp_path)
    generator = np.random.default_rng(5)
    inputs = {spec.name: generator.standard_normal(spec.shape).astype(np.float32) for spec in model.inputs}
    results = model.run(inputs)
    for result, expected in zip(results.values(), by_kernel(model, *inputs.values()), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_kernels_see_what_others_wrote(tmp_path: Path) -> None:
    """LLVM is told that buffers of different names do not overlap; in the workspace they lie in the same place."""
    model = built(chain((16,), 9), tmp_path)
    x = np.linspace(-2, 2, 16, dtype=np.float32)
    expected = x.astype(np.float64)
    for _ in range(9):
        expected = np.sin(expected)
    # Nine sines, each within a few ulp of 2**-24, of values below 1 whose derivative is below 1.
    np.testing.assert_allclose(model.run(x)["output_0"], expected + x, atol=9 * 4 * 2**-24 + 2**-23)


def test_main_is_one_call() -> None:
    module = lowered(many_results())
    assert [str(callee.global_symbol) for callee in callees(module["main"])] == [HOST]
    kernel_calls = [callee.name_hint for callee in callees(module[BY_KERNEL]) if isinstance(callee, tvm.ir.GlobalVar)]
    assert len(kernel_calls) >= 3
    assert all(f"bnnc_{name}" in {str(v.name_hint) for v in module.get_global_vars()} for name in kernel_calls)


def test_bodies_are_called_with_pointers_inside_the_workspace() -> None:
    """Every offset that the host function hands to a kernel leaves room for what the kernel's buffer holds."""
    module = lowered(chain((100,), 5))
    report = memory_report(module)
    assert report is not None
    assert report["workspace_bytes"] == 448 + 400  # two places of 400 bytes, at multiples of 64
    assert report["activations_peak_bytes"] == 800
    assert report["constants_bytes"] == 0
    text = module[HOST].script()
    assert "T.handle_add_byte_offset(workspace.data, T.int64(448))" in text


def test_constants_are_counted_once() -> None:
    report = memory_report(lowered(many_results()))
    assert report is not None
    assert WEIGHT.nbytes <= report["constants_bytes"] <= WEIGHT.nbytes + 64


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    """Other callers of the library have no ``Signature`` that checks for them."""
    model = built(many_results(), tmp_path)
    main = model._closure("main")
    results = list(model._main.new_outputs().values())
    main(np.zeros((1, 1024), np.float32), *results)
    for wrong in (np.zeros((1, 1023), np.float32), np.zeros((1024,), np.float32), np.zeros((1, 1024), np.float64)):
        with pytest.raises((TypeError, ValueError), match="main_kernels"):
            main(wrong, *results)
    with pytest.raises((TypeError, ValueError), match="main_kernels"):
        main(np.zeros((1, 1024), np.float32), np.zeros(9, np.float32), *results[1:])


def test_memory_is_taken_once(tmp_path: Path) -> None:
    """A workspace of 16 MiB that came anew from the system in each run would be 4096 page faults each time."""
    model = built(chain(BLOCK, 3), tmp_path)
    x = np.zeros(BLOCK, np.float32)
    out = {"output_0": np.zeros(BLOCK, np.float32)}
    model.run(x, out)
    model.run(x, out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        model.run(x, out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 4096


def with_scratch(size: int) -> IRModule:
    """x -> 2x + 1, reversed, by a kernel that keeps 2x in memory of its own."""
    source = te.placeholder((size,), "float32", name="source")
    double = te.compute((size,), lambda i: source[i] * 2.0, name="double")
    backwards = te.compute((size,), lambda i: double[size - 1 - i] + 1.0, name="backwards")
    builder = relax.BlockBuilder()
    kernel = builder.add_func(te.create_prim_func([source, backwards]).without_attr("global_symbol"), "backwards")
    x = relax.Var("x", relax.TensorType((size,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.call_tir(kernel, [x], relax.TensorType((size,), "float32")))
        builder.emit_func_output(result)
    return builder.get()


def test_kernels_give_back_what_they_allocate(tmp_path: Path) -> None:
    """Kept, the 8 MiB of 10 runs would be 20480 page faults."""
    size = 2**21
    report = memory_report(lowered(with_scratch(size)))
    assert report is not None
    assert report["scratch_bytes"] == 4 * size
    model = built(with_scratch(size), tmp_path)
    x = np.arange(size, dtype=np.float32)
    out = {"output_0": np.zeros(size, np.float32)}
    for _ in range(2):
        np.testing.assert_array_equal(model.run(x, out)["output_0"], (2 * x + 1)[::-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        model.run(x, out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2048


def test_functions_of_the_runtime_stay_with_the_virtual_machine(tmp_path: Path) -> None:
    module = lowered(copied_by_the_runtime())
    assert memory_report(module) is None
    assert BY_KERNEL not in {str(variable.name_hint) for variable in module.get_global_vars()}
    model = built(copied_by_the_runtime(), tmp_path)
    x = np.array([0, 1, 2, 3], np.float32)
    np.testing.assert_allclose(model.run(x)["output_0"], np.sin(x), atol=4 * 2**-24)
    assert BY_KERNEL not in read_manifest(tmp_path / "model.so")["functions"]


def test_applies_once_and_changes_only_a_copy() -> None:
    prepared = tvm.transform.Sequential(list(build_passes().passes)[:9])(chain((16,), 2))
    assert isinstance(prepared["main"], relax.Function)
    text = prepared.script()
    once = tvm.transform.Sequential([RunInOneCall()])(prepared)
    assert prepared.script() == text
    assert isinstance(once[HOST], tirx.PrimFunc)
    assert tvm.transform.Sequential([RunInOneCall()])(once)[HOST].same_as(once[HOST])
