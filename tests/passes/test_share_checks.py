"""Shared checks: a caller's tensors are refused in words, and a library's own are not looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from elftools.elf.elffile import ELFFile
from tvm import IRModule, relax, tirx

from bnn_compiler.build import build_library, build_passes
from bnn_compiler.passes.kernel_bodies import CALLS_BODIES_ATTR
from bnn_compiler.passes.run_in_one_call import BY_KERNEL
from bnn_compiler.passes.share_checks import ShareChecks
from bnn_compiler.runtime import CompiledModel, load
from bnn_compiler.target import parse_target
from tests.small_relax_modules import applied

Array = npt.NDArray[Any]
Call = Callable[..., object]

SHAPE = (1, 3, 4)


def scaled() -> IRModule:
    """(x float32 [1, 3, 4], n int16 [2], s float32 []) -> 2x, n + n, s + s."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    n = relax.Var("n", relax.TensorType((2,), "int16"))
    s = relax.Var("s", relax.TensorType((), "float32"))
    factor = relax.const(np.full(SHAPE, 2, np.float32))
    with builder.function("main", [x, n, s]):
        with builder.dataflow():
            double = builder.emit(relax.op.multiply(x, factor))
            results = [double, builder.emit(relax.op.add(n, n)), builder.emit(relax.op.add(s, s))]
            whole = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(whole)
    return builder.get()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CompiledModel:
    path = tmp_path_factory.mktemp("checks") / "model.so"
    build_library(scaled(), parse_target("native"), {}, path)
    return load(path)


def arguments() -> dict[str, Array]:
    """Inputs, then buffers of outputs, in order."""
    x = np.arange(12, dtype=np.float32).reshape(SHAPE)
    n, s = np.array([3, -4], np.int16), np.array(1.5, np.float32)
    return {"x": x, "n": n, "s": s, "2x": np.zeros_like(x), "2n": np.zeros_like(n), "2s": np.zeros_like(s)}


@pytest.mark.parametrize("function", ["main", BY_KERNEL])
def test_right_tensors_pass(model: CompiledModel, function: str) -> None:
    given = arguments()
    model._machine()[function](*given.values())
    for name in ("x", "n", "s"):
        np.testing.assert_array_equal(given[f"2{name}"], 2 * given[name])


def test_strides_of_single_elements_say_nothing(model: CompiledModel) -> None:
    given = arguments()
    wide = np.zeros((2, *SHAPE[1:]), np.float32)
    given["x"] = np.lib.stride_tricks.as_strided(wide[:1], SHAPE, (400, 16, 4))
    model._machine()["main"](*given.values())


WRONG: list[tuple[str, Array]] = [
    ("x", np.zeros(12, np.float32)),
    ("x", np.zeros((1, 3, 5), np.float32)),
    ("x", np.zeros((2, 3, 4), np.float32)),
    ("x", np.zeros(SHAPE, np.int32)),
    ("x", np.zeros(SHAPE, np.float64)),
    ("x", np.zeros((1, 3, 8), np.float32)[:, :, ::2]),
    ("x", np.zeros((1, 4, 3), np.float32).transpose(0, 2, 1)),
    ("n", np.zeros(3, np.int16)),
    ("n", np.zeros(2, np.uint16)),
    ("s", np.zeros(1, np.float32)),
    ("2x", np.zeros((1, 3, 8), np.float32)[:, :, ::2]),
    ("2n", np.zeros(4, np.int16)[::2]),
    ("2s", np.zeros((), np.float64)),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG)
def test_wrong_tensors_are_refused_by_name(model: CompiledModel, name: str, wrong: Array) -> None:
    given = arguments()
    position = list(given).index(name)
    given[name] = wrong
    with pytest.raises(ValueError, match=rf"main_kernels: argument {position}, .* must be a dense .* tensor of shape"):
        model._machine()["main"](*given.values())
    # Here the virtual machine looks at types and shapes, and the kernels' entries at the rest.
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        model._machine()[BY_KERNEL](*given.values())


@pytest.mark.parametrize("wrong", [3, 2.5, None, "x"])
def test_what_is_no_tensor_is_refused(model: CompiledModel, wrong: object) -> None:
    for position in range(6):
        given: list[object] = list(arguments().values())
        given[position] = wrong
        with pytest.raises((TypeError, ValueError), match=f"main_kernels: argument {position}"):
            model._machine()["main"](*given)


def test_one_check_per_rank() -> None:
    with parse_target("native").tvm_target:
        built = build_passes()(scaled())
    callers = {
        variable: function
        for variable, function in built.functions_items()
        if isinstance(function, tirx.PrimFunc) and CALLS_BODIES_ATTR in function.attrs
    }
    module = IRModule(callers)
    text = module.script()
    shared = applied(module, ShareChecks())
    assert module.script() == text  # only a copy is changed
    names = {str(variable.name_hint) for variable in shared.get_global_vars()}
    assert names - {str(variable.name_hint) for variable in callers} == {
        f"bnnc_check_tensor_{rank}d" for rank in (0, 1, 3)
    }
    assert not any(tirx.buffer.is_buffer_var(p) for _, function in shared.functions_items() for p in function.params)


def test_constants_cost_few_bytes(tmp_path: Path) -> None:
    """Each of a network's constants is an argument; with its kernel's call it takes 82 bytes, with checks 150."""
    sizes = []
    for count in (8, 72):
        builder = relax.BlockBuilder()
        x = relax.Var("x", relax.TensorType((16,), "float32"))
        with builder.function("main", [x]):
            with builder.dataflow():
                value: relax.Expr = x
                for index in range(count):
                    constant = relax.const(np.full(16, index, np.float32))
                    value = builder.emit(relax.op.add(value, constant))
                result = builder.emit_output(value)
            builder.emit_func_output(result)
        build_library(builder.get(), parse_target("native"), {}, tmp_path / "model.so")
        with (tmp_path / "model.so").open("rb") as stream:
            sizes.append(ELFFile(stream).get_section_by_name(".text")["sh_size"])
    assert sizes[1] - sizes[0] < 64 * 110
