"""Batch-norm as multiply-add, in ONNX Runtime's rounding."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnn_compiler.constants import op_name
from bnn_compiler.frontend import import_onnx
from bnn_compiler.passes import FoldBatchNorm
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

SHAPE = [2, 5, 3, 4]


def batch_norm(*, constant: bool = True) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    names = ["scale", "bias", "mean", "variance"]
    arrays = [random.standard_normal(5).astype(np.float32) for _ in names]
    arrays[3] = np.abs(arrays[3])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    if not constant:
        inputs.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [5]))
    graph = helper.make_graph(
        [helper.make_node("BatchNormalization", ["x", *names], ["y"], name="bn", epsilon=1e-3)],
        "graph",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True) if constant or n != "scale"],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def operators(module: object) -> list[str]:
    main = module["main"]  # type: ignore[index]
    return [op_name(binding.value) for block in main.body.blocks for binding in block.bindings]


def test_equals_onnx_runtime_bit_for_bit() -> None:
    model = batch_norm()
    folded = applied(import_onnx(model).module, FoldBatchNorm())
    assert "relax.nn.batch_norm" not in operators(folded)
    assert [name for name in operators(folded) if name] == ["relax.multiply", "relax.add"]
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    # LLVM may contract multiply and add into one rounding: half a unit in the last place of the product.
    np.testing.assert_allclose(run_by_default(folded, x), expected, rtol=0, atol=2**-23 * np.abs(expected).max())


def test_parameters_that_are_inputs_stay() -> None:
    module = import_onnx(batch_norm(constant=False)).module
    assert "relax.nn.batch_norm" in operators(applied(module, FoldBatchNorm()))


def test_twice_is_once() -> None:
    once = applied(import_onnx(batch_norm()).module, FoldBatchNorm())
    assert operators(applied(once, FoldBatchNorm())) == operators(once)


@pytest.mark.parametrize("attribute", ["bnnc.names", "bnnc.inputs"])
def test_module_attributes_survive(attribute: str) -> None:
    module = import_onnx(batch_norm()).module
    assert applied(module, FoldBatchNorm()).attrs[attribute] == module.attrs[attribute]
