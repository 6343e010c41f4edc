"""Inputs and outputs of unusual kinds: scalars, views, the same tensor twice, inputs and constants as outputs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx.parser
import onnxruntime
import pytest

from bnn_compiler.driver import compile_model

GRAPHS = {
    "scalars": """g (float a, bool b, double d) => (float y, bool z, double w, float a2) {
        y = Neg(a)  z = Not(b)  w = Abs(d)  a2 = Add(a, a)
    }""",
    "scalar input as it is": "g (bool b) => (bool y, bool z) { y = Identity(b)  z = Identity(b) }",
    "unused input": "g (float[2] a, float u) => (float[2] y) { y = Relu(a) }",
    "views": """g (float[2,3] a) => (float[6] y, float[1,2,3] z, float[3,2] w, float[2,3] v)
        <int64[1] all = {-1}, int64[1] first = {0}, int64[2] turned = {3, 2}> {
        v = Relu(a)  y = Reshape(v, all)  z = Unsqueeze(v, first)  w = Reshape(y, turned)
    }""",
    "views of an input": """g (float[2,3] a) => (float[6] y, float[2,3] z)
        <int64[1] all = {-1}> { y = Reshape(a, all)  z = Identity(a) }""",
    "one tensor twice": "g (float[2,3] a) => (float[2,3] y, float[2,3] z) { y = Neg(a)  z = Identity(y) }",
    "equal tensors": "g (float[2,3] a) => (float[2,3] y, float[2,3] z) { y = Neg(a)  z = Neg(a) }",
    "outputs without elements": """g (float[2,1] a) => (float[2,0] y, float[2] z, int64[0,1] c, float[2,2] w)
        <int64[1] nothing = {0}, int64[1] axis = {1}, int64[4] amounts = {0, 2, 0, -1}> {
        y = Slice(a, nothing, nothing, axis)
        z = ReduceSum<keepdims = 0>(y, axis)
        c = Constant<value = int64[0,1] {}>()
        w = Pad(a, amounts)
    }""",
    "no output has elements": """g (float16[1,1] a, float[0,3] b) => (float16[1,0] y, float[0,3] z)
        <int64[1] nothing = {0}, int64[1] axis = {1}> { y = Slice(a, nothing, nothing, axis)  z = Relu(b) }""",
    "inputs without elements": """g (float[0,3] a, float[1,3] b, int64[2,0] c)
        => (float[0,3] y, float[3] z, float[1,3] w, int64[2,0] c) <int64[1] axis = {0}> {
        y = Relu(a)  z = ReduceSum<keepdims = 0>(a, axis)  w = Concat<axis = 0>(a, b)
    }""",
    "images without a batch": """g (float[0,2,4,4] a, float[1] b) => (float[0,3,2,2] y, float[1] z)
        <float[3,2,3,3] w = {1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,
                             1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1,1,-1,1}> {
        s = Sign(a)  y = Conv(s, w)  z = Neg(b)
    }""",
    "constants": """g (float[2] a) => (float[2] y, float[3] c, float[3] d) <float[3] k = {1, 2, 3}> {
        y = Neg(a)  c = Identity(k)  d = Identity(k)
    }""",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_border(name: str) -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {GRAPHS[name]}')
    compiled = compile_model(model)
    generator = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        spec.name: np.asarray(generator.integers(-2, 3, spec.shape)).astype(spec.dtype) for spec in compiled.inputs
    }
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = compiled.run(feeds)
    for key, expected in zip(actual, session.run(list(actual), feeds), strict=True):
        assert (actual[key].shape, actual[key].dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(actual[key], expected, err_msg=key)
