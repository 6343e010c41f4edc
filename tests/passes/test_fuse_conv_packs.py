"""Float convolutions before packs: which become one kernel, which do not, and that bits stay the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.constants import op_name
from bnn_compiler.passes.fuse_conv_packs import FuseConvPacks
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.pack import pack_conv_activations
from bnn_compiler.target import parse_target
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

SHAPE = (2, 3, 20, 24)
TARGET = parse_target("native").tvm_target


def integers(*shape: int) -> np.ndarray[Any, Any]:
    """Sums of products of these are exact in any order."""
    return np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)


def network(
    *, bias: np.ndarray[Any, Any] | None = None, bias_first: bool = False, strides: int = 1, read_twice: bool = False
) -> tvm.IRModule:
    """conv2d, perhaps a sum, pack; with ``read_twice`` the map is a result, too."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    size = [(extent + 2 - 3) // strides + 1 for extent in SHAPE[2:]]
    reader = ConvGeometry(SHAPE[0], 20, size[0], size[1], 1, (3, 3), pads=(1, 1, 1, 1))
    pack = pack_conv_activations(reader, isa=detect_isa(TARGET), predicate="gt", threshold="channel", pad_code=1)
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = relax.const(integers(20, 3, 3, 3))
            value = builder.emit(relax.op.nn.conv2d(x, weight, strides=strides, padding=1), "conv")
            if bias is not None:
                operands = [relax.const(bias), value] if bias_first else [value, relax.const(bias)]
                value = builder.emit(relax.op.add(*operands), "sum")
            kernel = builder.add_func(pack, "pack")
            bits = relax.TensorType((SHAPE[0], 1, 1, size[0] + 2, size[1] + 2), "uint64")
            packed = relax.call_tir(kernel, [value, relax.const(integers(20))], bits)
            outputs = [builder.emit_output(packed)]
            if read_twice:
                outputs.append(builder.emit_output(relax.op.negative(value)))
        builder.emit_func_output(outputs if read_twice else outputs[0])
    return builder.get()


def kernels(module: tvm.IRModule) -> list[str]:
    """What ``main`` calls."""
    values = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    names = [value.args[0].name_hint if op_name(value) == "relax.call_tir" else op_name(value) for value in values]
    return [name for name in names if name]


@pytest.mark.parametrize("bias", [None, integers(20, 1, 1), integers(1, 20, 1, 1)], ids=["none", "CHW", "NCHW"])
def test_fuses(bias: np.ndarray[Any, Any] | None) -> None:
    module = network(bias=bias)
    fused = applied(module, FuseConvPacks(TARGET))
    (name,) = kernels(fused)
    assert name.startswith("float_conv2d_3x3_to_bipolar_bits")
    x = integers(*SHAPE)
    np.testing.assert_array_equal(run_by_default(fused, x), run_by_default(module, x))
    tvm.ir.assert_structural_equal(applied(fused, FuseConvPacks(TARGET))["main"], fused["main"])


def test_the_call_has_the_name_of_the_tensor() -> None:
    """The profile finds ONNX nodes by it."""
    fused = applied(network(bias=integers(20, 1, 1)), FuseConvPacks(TARGET))
    assert "sum" in [str(binding.var.name) for block in fused["main"].body.blocks for binding in block.bindings]


@pytest.mark.parametrize(
    "options",
    [{"strides": 2}, {"bias": integers(20, 20, 24)}, {"bias": integers(24)}, {"read_twice": True}],
    ids=["strides", "bias-per-pixel", "bias-per-column", "another-reader"],
)
def test_leaves_others_alone(options: dict[str, Any]) -> None:
    module = network(**options)
    tvm.ir.assert_structural_equal(applied(module, FuseConvPacks(TARGET))["main"], module["main"])
