from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx

from .onnx_text import parse


@pytest.mark.parametrize(
    ("weight", "attributes", "cause"),
    [
        ("3,3,3,3", "", r"data of 4 channels, but its weight of shape \[3, 3, 3, 3\] in 1 group needs 3$"),
        ("4,2,3,3", "group = 4", "in 4 groups needs 8$"),
        ("3,2,3,3", "group = 2", "needs 4, and output channels that 2 divides$"),
        ("3,4,3,3", "group = 0", "in 0 groups needs 0$"),
        ("3,4,3,3", "kernel_shape = [5, 5]", r"kernel_shape \[5, 5\], but a weight of shape \[3, 4, 3, 3\]"),
        ("3,4,7,7", "", "window of 7 on a padded image of 6"),
        ("3,4,3,3", "dilations = [9, 1], pads = [2, 0, 3, 0]", "window of 19 on a padded image of 11"),
        ("3,4,3,3", "pads = [-1, 0, 0, 0]", "pads must not contain negative values"),
        ("3,4,3,3", "strides = [0, 1]", "strides must only contain positive values"),
        ("3,4,3", "", "spatial dimensions"),
    ],
)
def test_convolutions_that_contradict_themselves(weight: str, attributes: str, cause: str) -> None:
    options = f"<{attributes}>" if attributes else ""
    model = parse(f"g (float[1,4,6,6] x, float[{weight}] w) => (float[N,C,H,W] y) {{ [c] y = Conv{options}(x, w) }}")
    with pytest.raises(ModelError, match=rf"^g: .*Conv node 'c'.*{cause}"):
        import_onnx(model)


@pytest.mark.parametrize(("data", "weight"), [("4,3", "2,3"), ("4", "2"), ("1,4,6,6", "3"), ("1,4", "3,4,3,3")])
def test_convolutions_of_the_wrong_rank(data: str, weight: str) -> None:
    model = parse(f"g (float[{data}] x, float[{weight}] w) => (float y) {{ [c] y = Conv(x, w) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="Conv node 'c'"):
        import_onnx(model)


def test_a_bias_of_the_wrong_length() -> None:
    text = "g (float[1,4,6,6] x, float[3,4,3,3] w, float[4] b) => (float[N,C,H,W] y) { [c] y = Conv(x, w, b) }"
    with pytest.raises(ModelError, match=r"'c' has a bias of shape \[4\] for 3 output channels"):
        import_onnx(parse(text))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("g (float[2,3] x, float[4,5] w) => (float[M,N] y) { [n] y = Gemm(x, w) }", "Gemm node 'n'.*between 4 and 3"),
        ("g (float[2,3] x, float[4,5] w) => (float[M,N] y) { [n] y = MatMul(x, w) }", "MatMul node 'n'"),
        ("g (float[2,3] x, float[4,5] w) => (float[M,N] y) { [n] y = Add(x, w) }", "Add node 'n'"),
        (
            "g (float[1,4] x, float[3] p, float[4] q) => (float[M,N] y) { [n] y = BatchNormalization(x, q, p, q, q) }",
            "BatchNormalization node 'n'",
        ),
    ],
)
def test_what_shape_inference_finds_names_the_node(text: str, cause: str) -> None:
    with pytest.raises(ModelError, match=rf"^g: shapes or types contradict each other: {cause}"):
        import_onnx(parse(text))


def _with_weight(operator: str, value: float, dtype: type[np.floating]) -> onnx.ModelProto:
    name = {np.float32: "float", np.float64: "double"}[dtype]
    weight = np.ones((4, 4), dtype)
    weight[2, 3] = value
    model = parse(f"g ({name}[4,4] x) => ({name}[4,4] y) <{name}[4,4] w = {{1}}> {{ [m] y = {operator}(x, w) }}")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    return model


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**64, -1.3e36])
def test_weights_that_no_training_leaves(operator: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"{operator} node 'm' has the weight .* at \[2, 3\] of 'w': .*damaged"):
        import_onnx(_with_weight(operator, value, np.float32))


@pytest.mark.parametrize(
    ("value", "dtype"), [(1e-40, np.float32), (1.8e19, np.float32), (-1e36, np.float64), (0.0, np.float32)]
)
def test_weights_that_are_merely_unusual(value: float, dtype: type[np.floating]) -> None:
    import_onnx(_with_weight("MatMul", value, dtype))


def test_large_constants_that_are_no_weights() -> None:
    import_onnx(_with_weight("Add", -3.4e38, np.float32))
    import_onnx(_with_weight("Min", np.inf, np.float32))
