from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.constants import op_name
from bnn_compiler.passes import FoldBroadcastConstants
from bnn_compiler.passes.fold_broadcast_constants import without_repetition
from tests.relax_run import Array, run_by_default
from tests.small_relax_modules import applied

SHAPE = (2, 3, 4, 5)


def _module(constant: Array, *, first: bool = False, shape: tuple[int, ...] = SHAPE) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            operands = [relax.const(constant), x] if first else [x, relax.const(constant)]
            output = builder.emit_output(relax.op.subtract(*operands))
        builder.emit_func_output(output)
    return builder.get()


def _constant_shape(module: tvm.IRModule) -> tuple[int, ...]:
    [call] = [
        b.value for block in module["main"].body.blocks for b in block.bindings if op_name(b.value) == "relax.subtract"
    ]
    [constant] = [argument for argument in call.args if isinstance(argument, tvm.ir.GenericConst)]
    return tuple(constant.value.shape)


def _map(*shape: int) -> Array:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(values, SHAPE))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 1, 1, 1), (2, 3, 1, 5), (1, 1, 4, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_full_maps_are_folded(shape: tuple[int, ...], first: bool) -> None:
    module = _module(_map(*shape), first=first)
    folded = applied(module, FoldBroadcastConstants())
    assert _constant_shape(folded) == shape
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(run_by_default(folded, x), run_by_default(module, x))


def test_maps_that_vary_stay() -> None:
    values = _map(1, 3, 1, 1)
    values[1, 2, 3, 4] = np.nextafter(values[1, 2, 3, 4], np.float32(9))
    assert _constant_shape(applied(_module(values), FoldBroadcastConstants())) == SHAPE


def test_a_constant_that_gives_the_result_its_shape_stays() -> None:
    module = _module(_map(1, 3, 1, 1), shape=(1, 3, 4, 5))
    assert _constant_shape(applied(module, FoldBroadcastConstants())) == SHAPE


def test_zeros_of_both_signs_are_no_repetition_but_equal_nans_are() -> None:
    assert without_repetition(np.array([[0.0, -0.0]], np.float32)).shape == (1, 2)
    assert without_repetition(np.array([[np.nan, np.nan]], np.float32)).shape == (1, 1)
    assert without_repetition(np.array([[True], [True]])).shape == (1, 1)
    assert without_repetition(np.zeros((0, 3), np.float32)).shape[0] == 0
