"""Pools whose windows do not fit the image: as ONNX Runtime counts them, behind the front end as before it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx


def pool(operator: str, shape: list[int], opset: int = 20, **attributes: Any) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x"], ["y"], name="pool", **attributes)
    graph = helper.make_graph(
        [node],
        "pool",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray | None:
    """What ONNX Runtime gives; ``None`` where it refuses."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": x})[0])
    except Exception:  # its errors have no common root of their own
        return None


def random_pool(choose: random.Random) -> tuple[onnx.ModelProto, list[int]]:
    operator, rank = choose.choice(["MaxPool", "AveragePool", "LpPool"]), choose.choice([1, 2, 2, 3])
    opset = choose.choice([18, 19, 20] if operator != "AveragePool" else [11, 18, 19, 20])
    kernel = [choose.choice([1, 2, 3, 4]) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": [choose.choice([1, 2, 3]) for _ in range(rank)]}
    if choose.random() < 0.4 and not (operator == "AveragePool" and opset < 19):
        attributes["dilations"] = [choose.choice([1, 2, 3]) for _ in range(rank)]
    if choose.random() < 0.5 and (operator != "LpPool" or opset >= 18):
        attributes["ceil_mode"] = 1
    if choose.random() < 0.3:
        attributes["auto_pad"] = choose.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif choose.random() < 0.7:
        attributes["pads"] = [choose.randint(0, kernel[axis % rank] - 1) for axis in range(2 * rank)]
    if operator == "AveragePool":
        attributes["count_include_pad"] = choose.choice([0, 1])
    shape = [1, 2, *(choose.choice([1, 1, 2, 3, 5, 8]) for _ in range(rank))]
    return pool(operator, shape, opset, **attributes), shape


def test_random_windows() -> None:
    """The normalised model has the shape and the values of the given one in ONNX Runtime."""
    choose = random.Random(0)
    generator = np.random.default_rng(0)
    compared = 0
    for number in range(400):
        model, shape = random_pool(choose)
        x = generator.standard_normal(shape).astype(np.float32)
        expected = run(model, x)
        if expected is None or expected.size == 0:
            continue
        try:
            imported = import_onnx(model)
        except UnsupportedOperatorError as error:
            assert "hang too far" in str(error)  # one of few, which the count below bounds
            continue
        where = f"{number}: {onnx.printer.to_text(model.graph)}"
        assert imported.outputs[0].shape == expected.shape, where
        (main,) = [function for name, function in imported.module.functions_items() if name.name_hint == "main"]
        assert tuple(int(extent) for extent in main.ret_ty.shape.values) == expected.shape, where
        actual = run(imported.onnx_model, x)
        assert actual is not None, where
        # The same numbers, summed in the same order up to zeros; cube roots of norms are rounded anew.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=where)
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("declared", [1, None])
def test_last_window_behind_the_image(declared: int | None) -> None:
    """ONNX's inference counts a window that starts in the padding; models are declared as ONNX Runtime counts."""
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [2, 0, 2, 2], "strides": [3, 2], "ceil_mode": 1}
    model = pool("AveragePool", [1, 3, 1, 1], 18, **attributes)
    if declared is not None:
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, declared, 1]))
    assert import_onnx(model).outputs[0].shape == (1, 3, 1, 1)


def test_other_declared_size_is_refused() -> None:
    model = pool("MaxPool", [1, 1, 4, 4], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 3, 2]))
    with pytest.raises(ModelError, match=r"pool.*contradict|contradict.*pool"):
        import_onnx(model)


def test_unknown_auto_pad() -> None:
    with pytest.raises(ModelError, match="pool"):
        import_onnx(pool("MaxPool", [1, 1, 4, 4], kernel_shape=[2, 2], auto_pad="SAME"))
