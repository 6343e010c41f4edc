"""Random forms of ``Resize`` and ``Upsample`` that ONNX Runtime runs, and models of one such node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bnn_compiler.frontend.resize_coordinates import COORDINATE_MODES, CROP, LEGACY, NEAREST_MODES

from .onnx_text import Array

_SCALES = (0.25, 0.3, 0.5, 0.6, 1, 1.3, 1.5, 1.7, 2, 2.3, 3, 4)


@dataclass
class Form:
    """A node on data ``x``: ``scales`` or ``sizes``, a region of interest, attributes."""

    x: Array
    opset: int
    scales: list[float] | None = None
    sizes: list[int] | None = None
    roi: list[float] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def resize_model(form: Form) -> onnx.ModelProto:
    """A model y = Resize(x), or Upsample(x) before operator set 10."""
    attributes, names = dict(form.attributes), ["x"]
    constants: list[onnx.TensorProto] = []

    def add(name: str, values: list[Any] | None, dtype: type) -> None:
        if values is None and form.opset >= 13:
            names.append("")
            return
        constants.append(numpy_helper.from_array(np.asarray(values or [], dtype), name))
        names.append(name)

    if form.opset < 9:
        attributes["scales"] = form.scales
    elif form.opset < 11:
        add("scales", form.scales, np.float32)
    else:
        add("roi", form.roi, np.float32)
        add("scales", form.scales, np.float32)
        if form.sizes is not None:
            add("sizes", form.sizes, np.int64)
    node = helper.make_node("Upsample" if form.opset < 10 else "Resize", names, ["y"], name="node", **attributes)
    dtype = helper.np_dtype_to_tensor_dtype(form.x.dtype)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", dtype, form.x.shape)],
        [helper.make_tensor_value_info("y", dtype, [f"d{axis}" for axis in range(form.x.ndim)])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", form.opset)], ir_version=7)


def random_form(seed: int) -> Form:
    """Every mode, coordinate mode, rounding, element type, rank and operator set has its turn."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice([7, 9, 10, 11, 13, 18, 19]))
    mode = str(rng.choice(["nearest", "linear", "cubic"] if opset >= 11 else ["nearest", "linear"]))
    attributes: dict[str, Any] = {"mode": mode}
    antialias = opset >= 18 and mode != "nearest" and rng.random() < 0.4
    dtype = "float32" if mode == "cubic" and not antialias else str(rng.choice(["float32", "int8", "uint8", "int32"]))
    rank = int(rng.choice({"nearest": range(1, 7), "linear": range(2, 6), "cubic": [2, 4]}[mode]))
    shape = rng.integers(2, 9, rank)
    moved = list(range(rank)) if rank < 4 else list(range(2, rank))
    if mode == "nearest":
        moved = [axis for axis in range(rank) if rng.random() < 0.7] or [0]
    elif rank == 4 and (mode == "linear" or antialias) and rng.random() < 0.4:
        moved = [1, 2]  # channels last
    form = Form(_data(rng, shape, dtype), opset, attributes=attributes)
    if opset >= 11 and rng.random() < 0.4:
        form.sizes = [int(rng.integers(1, 18)) if axis in moved else int(shape[axis]) for axis in range(rank)]
    else:
        least = [1.0 if opset < 10 else 1 / length + 1e-6 for length in shape]
        form.scales = [max(float(rng.choice(_SCALES)), least[axis]) if axis in moved else 1.0 for axis in range(rank)]
    if opset >= 11:
        _choose_coordinates(rng, form, rank)
        if mode == "cubic":
            attributes["cubic_coeff_a"] = float(rng.choice([-0.75, -0.5]))
        if mode == "cubic" or antialias:
            attributes["exclude_outside"] = int(rng.integers(2))
        attributes |= {"antialias": 1} if antialias else {}
    if opset >= 18 and rng.random() < 0.4:
        _choose_axes(rng, form, moved)
    return form


def _data(rng: np.random.Generator, shape: Array, dtype: str) -> Array:
    numbers = rng.standard_normal(shape)
    return np.asarray(numbers if dtype == "float32" else numbers * 30 + 60, dtype)


def _choose_coordinates(rng: np.random.Generator, form: Form, rank: int) -> None:
    newer = {"half_pixel_symmetric"} if form.opset < 19 else set()
    mode = str(rng.choice(sorted(COORDINATE_MODES - newer)))
    form.attributes["coordinate_transformation_mode"] = mode
    if form.attributes["mode"] == "nearest":
        form.attributes["nearest_mode"] = str(rng.choice(sorted(NEAREST_MODES - {LEGACY})))
    if mode == CROP:
        first, last = rng.uniform(-0.3, 0.6, rank), rng.uniform(0.4, 1.4, rank)
        form.roi = [float(bound) for bound in (*first, *last)]
        form.attributes["extrapolation_value"] = float(rng.integers(20))


def _choose_axes(rng: np.random.Generator, form: Form, moved: list[int]) -> None:
    """Speak of the axes that are resized alone, in any order, some counted from the end; sizes may keep a ratio."""
    rank = form.x.ndim
    axes = [int(axis) for axis in rng.permutation(moved)]
    policy = str(rng.choice(["stretch", "not_larger", "not_smaller"])) if form.sizes is not None else "stretch"
    form.attributes["axes"] = [axis - rank if policy == "stretch" and rng.random() < 0.3 else axis for axis in axes]
    form.attributes |= {"keep_aspect_ratio_policy": policy} if policy != "stretch" else {}
    if form.scales is not None:
        form.scales = [form.scales[axis] for axis in axes]
    if form.roi is not None:
        form.roi = [form.roi[axis] for axis in axes] + [form.roi[rank + axis] for axis in axes]
    if form.sizes is not None:
        form.sizes = [form.sizes[axis] for axis in axes]
