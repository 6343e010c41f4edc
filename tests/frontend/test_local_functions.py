from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, TensorProto, helper

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx

from .onnx_text import operators, random_feeds, run_onnx

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]


def _calls(name: str, callee: str, count: int, *, domain: str = "my", opset: int = 17) -> FunctionProto:
    """A function that applies another one ``count`` times."""
    nodes = [
        helper.make_node(callee, [f"v{i}" if i else "a"], [f"v{i + 1}" if i < count - 1 else "b"], domain=domain)
        for i in range(count)
    ]
    return helper.make_function("my", name, ["a"], ["b"], nodes, [helper.make_opsetid("", opset), OPSETS[1]])


def _model(*functions: FunctionProto) -> onnx.ModelProto:
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="my")], "g", border[:1], border[1:])
    return helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=9)


def test_functions_are_expanded() -> None:
    model = _model(_calls("f0", "f1", 2), _calls("f1", "Neg", 3, domain=""))
    imported = import_onnx(model)
    assert operators(imported.onnx_model) == ["Neg"] * 6
    assert len({node.name for node in imported.onnx_model.graph.node}) == 6
    feeds = random_feeds([("x", (1, 4))])
    np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds), run_onnx(model, feeds))


def test_a_bomb_is_refused_before_it_explodes() -> None:
    functions = [_calls(f"f{i}", f"f{i + 1}", 10) for i in range(20)]
    with pytest.raises(ModelError, match=r"functions expand to 2[0-9]* nodes"):
        import_onnx(_model(*functions, _calls("f20", "Neg", 1, domain="")))


def test_circles_are_refused() -> None:
    with pytest.raises(ModelError, match=r"call each other in a circle at my\.f0"):
        import_onnx(_model(_calls("f0", "f1", 1), _calls("f1", "f0", 1)))
    with pytest.raises(ModelError, match="circle"):
        import_onnx(_model(_calls("f0", "f0", 1)))


def test_two_functions_of_one_name_and_foreign_versions() -> None:
    with pytest.raises(ModelError, match="defines a function twice"):
        import_onnx(_model(_calls("f0", "Neg", 1, domain=""), _calls("f0", "Abs", 1, domain="")))
    with pytest.raises(ModelError, match=r"my\.f0 uses the operator set 11, the model 17"):
        import_onnx(_model(_calls("f0", "Neg", 1, domain="", opset=11)))
