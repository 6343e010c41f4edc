"""``Resize`` and ``Upsample`` against ONNX Runtime, bit for bit: the operations are the same, in the same order."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

import bnn_compiler
from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.frontend.resize_coordinates import (
    COORDINATE_MODES,
    CROP,
    LEGACY,
    NEAREST_MODES,
    ResizedAxis,
    nearest_elements,
    original_coordinates,
)

from .onnx_text import parse, run_onnx, run_relax
from .resize_forms import Form, random_form, resize_model

F32 = np.float32


def _check(form: Form) -> None:
    model = resize_model(form)
    [expected] = run_onnx(model, {"x": form.x})
    if not expected.size:
        return  # tensors without elements are refused
    [found] = run_relax(import_onnx(model).module, [form.x])
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, err_msg=repr((form.x.shape, form)))


@pytest.mark.parametrize("seed", range(40))
def test_random_forms(seed: int) -> None:
    _check(random_form(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 2000))
def test_more_random_forms(seed: int) -> None:
    _check(random_form(seed))


@pytest.mark.parametrize("rounding", sorted(NEAREST_MODES - {LEGACY}))
@pytest.mark.parametrize("coordinates", sorted(COORDINATE_MODES - {CROP}))
def test_nearest_elements(coordinates: str, rounding: str) -> None:
    """Every length to every other: coordinates come to lie within an ulp of the middle between two elements, often.

    One model resizes three axes of different lengths at once, which tells their elements apart.
    """
    for length, resized in itertools.product(range(2, 15, 2), range(1, 31, 3)):
        before, after = (1, length, length + 1, length + 2), (1, resized, resized + 1, resized + 2)
        x = np.arange(np.prod(before), dtype=F32).reshape(before)
        attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        [expected] = run_onnx(resize_model(Form(x, 19, sizes=list(after), attributes=attributes)), {"x": x})
        found = x
        for number in range(4):
            scale = F32(after[number]) / F32(before[number])
            axis = ResizedAxis(before[number], after[number], scale)
            if before[number] != after[number]:
                elements = nearest_elements(axis, original_coordinates(axis, coordinates), rounding)
                found = np.take(found, elements, number)
        np.testing.assert_array_equal(found, expected, err_msg=f"{length} to {resized}")


@pytest.mark.parametrize(
    ("length", "scale", "resized"),
    [(10, 2.3, 23), (10, 1.3, 13), (7, 0.3, 2), (5, 0.6, 3)],
)
def test_lengths_are_those_of_onnx_runtime(length: int, scale: float, resized: int) -> None:
    """In float32, 10 · 2.3 rounds up to 23; ONNX's shape inference says 22."""
    model = parse(
        f"""g (float[1,2,{length},4] x) => (float[a,b,c,d] y) <float[4] s = {{1.0, 1.0, {scale}, 2.0}}> {{
        t = Resize<mode = "linear">(x, , s) y = Relu(t) }}"""
    )
    x = np.random.default_rng(0).standard_normal((1, 2, length, 4)).astype(F32)
    imported = import_onnx(model)
    assert imported.outputs[0].shape == (1, 2, resized, 8)
    np.testing.assert_array_equal(run_relax(imported.module, [x])[0], run_onnx(model, {"x": x})[0])


_IMAGE = np.zeros((1, 2, 3, 4), F32)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(_IMAGE.astype(np.float64), 13, scales=[1, 1, 2, 2]), "float64"),
        (Form(_IMAGE, 13, scales=[1, 2, 2, 2], attributes={"mode": "linear"}), "scales"),
        (Form(_IMAGE[..., None, None], 13, scales=[1, 1, 1, 1, 2, 2], attributes={"mode": "linear"}), "scales"),
        (Form(_IMAGE[0], 13, scales=[1, 2, 2], attributes={"mode": "cubic"}), "cubic"),
        (Form(_IMAGE.astype(np.uint8), 13, scales=[1, 1, 2, 2], attributes={"mode": "cubic"}), "uint8"),
        (Form(_IMAGE, 18, scales=[1, 1, 2, 2], attributes={"antialias": 1}), "antialias"),
        (Form(_IMAGE, 13, scales=[1, 1, 2, 2], attributes={"exclude_outside": 1}), "exclude_outside"),
        (Form(_IMAGE, 9, scales=[1, 1, 0.5, 2]), "at least 1"),
        (
            Form(
                _IMAGE, 18, scales=[2, 2], roi=[0, 1, 1],
                attributes={"axes": [2, 3], "coordinate_transformation_mode": CROP},
            ),
            "roi of 3 numbers",
        ),
    ],
)  # fmt: skip
def test_refused_as_by_onnx_runtime(form: Form, reason: str) -> None:
    model = resize_model(form)
    with pytest.raises(Exception, match=r"ONNXRuntimeError|NOT_IMPLEMENTED|Upsample"):
        run_onnx(model, {"x": form.x})
    with pytest.raises(UnsupportedOperatorError, match=reason) as refusal:
        import_onnx(model)
    assert "node 'node'" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_axes_that_onnx_runtime_ignores_are_refused() -> None:
    attributes = {"axes": [-2, 3], "keep_aspect_ratio_policy": "not_larger"}
    with pytest.raises(UnsupportedOperatorError, match="counts axes from the end"):
        import_onnx(resize_model(Form(_IMAGE, 18, sizes=[6, 6], attributes=attributes)))


def test_scales_of_run_time_are_refused() -> None:
    model = parse(
        "g (float[1,2,3,4] x, float[8] r) => (float[1,2,6,8] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> "
        '{ y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, r, s) }'
    )
    with pytest.raises(UnsupportedOperatorError, match="at run time"):
        import_onnx(model)


@pytest.mark.parametrize(
    ("opset", "scales", "attributes"),
    [
        (9, [1, 1, 2, 2], {}),
        (9, [1, 1, 1.5, 2], {}),
        (10, [1, 1, 0.5, 0.75], {}),
        (17, [1, 1, 1.7, 1.7], {"nearest_mode": "ceil"}),
        (17, [1, 1, 3, 2], {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ],
)
def test_nearest_signs_stay_binary(opset: int, scales: list[float], attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 16, 6, 8)).astype(F32)
    model = resize_model(Form(x, opset, scales=scales, attributes=attributes))
    for node in model.graph.node:
        node.input[0], node.output[0] = "signs", "resized"
    weight = rng.choice([-1, 1], (8, 16, 3, 3)).astype(F32)
    text = "g (float[1,16,6,8] x, float[8,16,3,3] w) => (float y) { signs = Sign(x) y = Conv(resized, w) }"
    sign, convolution = parse(text, opset=opset).graph.node
    nodes = [sign, *model.graph.node, convolution]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0])
