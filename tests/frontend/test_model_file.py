from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.frontend.model_file import MAX_SUBGRAPH_DEPTH, load_model, source_name

from .onnx_text import parse

ADD = "g (float[1,4] x) => (float[1,4] y) <float[4] c = {1, 2, 3, 4}> { y = Add(x, c) }"


def test_path_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    model = parse(ADD)
    path = tmp_path / "add.onnx"
    path.write_bytes(model.SerializeToString())
    loaded = [load_model(source) for source in (path, str(path), model.SerializeToString(), model)]
    assert all(one == loaded[0] for one in loaded)
    assert [source_name(path), source_name(model), source_name(b"")] == ["add.onnx", "g", "model"]


def test_the_callers_proto_is_not_changed() -> None:
    model = parse("g (float[N,4] x) => (float[N,4] y) { t = Identity(x) y = Relu(t) }")
    before = model.SerializeToString(deterministic=True)
    import_onnx(model)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "cannot be decoded"),
        (b"PK\x03\x04 this is a zip file, not a model", "cannot be decoded"),
        (b"\x08\x08", "holds no graph"),
    ],
)
def test_bytes_that_are_no_model(data: bytes, cause: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^model: .*{cause}"):
        import_onnx(data)
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=f"^broken.onnx: .*{cause}"):
        import_onnx(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^gone.onnx: no such file$"):
        import_onnx(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is a directory"):
        import_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        import_onnx(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match=r"^a.x00b.onnx: "):
        import_onnx("a\0b.onnx")


def test_a_file_beyond_the_format_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # sparse: takes no disk
    with pytest.raises(ModelError, match=r"huge.onnx: the file is larger than 2 GiB"):
        import_onnx(path)


@pytest.mark.parametrize(
    ("dims", "cause"),
    [
        ([2**40], "needs 4398046511104 bytes, but the model holds 16"),
        ([2**62, 2**62], "but the model holds 16"),
        ([-4], "negative dimension -4"),
        ([5], "needs 20 bytes, but the model holds 16"),
        ([3], "needs 12 bytes, but the model holds 16"),
    ],
)
def test_declared_size_must_be_the_size_of_the_data(dims: list[int], cause: str) -> None:
    model = parse(ADD)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"\0" * 16))
    with pytest.raises(ModelError, match=cause):
        import_onnx(model)


def test_declared_size_counts_in_typed_fields_and_attributes_too() -> None:
    model = parse("g (float[1,4] x) => (float[1,4] y) { c = Constant<value = float[1] {1}>() y = Add(x, c) }")
    model.graph.node[0].attribute[0].t.CopyFrom(TensorProto(data_type=TensorProto.FLOAT, dims=[9], float_data=[1.0]))
    with pytest.raises(ModelError, match="needs 9 elements, but the model holds 1"):
        import_onnx(model)


def test_unsupported_element_types_are_named() -> None:
    model = parse(ADD)
    model.graph.initializer[0].data_type = TensorProto.STRING
    with pytest.raises(ModelError, match="'c' has the element type string"):
        import_onnx(model)
    model.graph.initializer[0].data_type = 77
    with pytest.raises(ModelError, match="'c' has the element type type 77"):
        import_onnx(model)
    with pytest.raises(UnsupportedOperatorError, match="'x' has the element type bfloat16"):
        import_onnx(parse("g (bfloat16[1,4] x) => (bfloat16[1,4] y) { y = Relu(x) }"))


def test_text_that_is_not_utf8() -> None:
    data = parse("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }").SerializeToString()
    with pytest.raises(ModelError, match="not UTF-8"):
        import_onnx(data.replace(b"Relu", b"Rel\xff"))


def _nested(depth: int) -> onnx.ModelProto:
    def leaf(name: str) -> onnx.GraphProto:
        node = helper.make_node("Relu", ["x"], [name])
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])])

    graph = leaf("inner")
    for level in range(depth):
        name = f"r{level}"
        node = helper.make_node("If", ["c"], [name], then_branch=graph, else_branch=leaf(f"e{level}"))
        graph = helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]))
    graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_nesting_is_bounded() -> None:
    assert len(load_model(_nested(MAX_SUBGRAPH_DEPTH)).graph.node) == 1
    with pytest.raises(ModelError, match="nested deeper than 16 levels"):
        load_model(_nested(MAX_SUBGRAPH_DEPTH + 1))


def test_names_in_messages_stay_on_one_line() -> None:
    model = parse(ADD)
    model.graph.name = "two\nlines\x1b[31m"
    model.graph.node[0].op_type = "No\nSuch"
    with pytest.raises(ModelError) as caught:
        import_onnx(model)
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(r"two\nlines\x1b[31m: unnamed No\nSuch node with output 'y'")


def test_data_is_read_from_typed_fields() -> None:
    imported = import_onnx(parse(ADD))
    [constant] = imported.onnx_model.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(constant), np.array([1, 2, 3, 4], np.float32))
