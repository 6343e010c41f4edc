from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx

from .small_models import ModelBuilder, small_model


def test_both_orders_of_axes() -> None:
    """Lengths as constants and as inputs; a length of 1 and the whole axis; one row, more axes behind."""
    build = ModelBuilder()
    for shape in ((4, 3), (4, 3, 2, 5)):
        data = build.feed(build.rng.standard_normal(shape).astype(np.float32))
        for batch_axis, lengths in ((1, [4, 1, 3]), (0, [3, 1, 2, 2])):
            axes = {"batch_axis": batch_axis, "time_axis": 1 - batch_axis}
            for known in (build.constant(lengths, np.int64), build.feed(np.array(lengths))):
                build.node("ReverseSequence", [data, known], TensorProto.FLOAT, **axes)
    assert "ReverseSequence" not in build.check()


def test_lengths_that_do_not_fit() -> None:
    node = helper.make_node("ReverseSequence", ["x", "n"], ["y"], name="r")
    model = small_model([node], {"x": np.zeros((4, 3), np.float32)}, {"y": 1}, {"n": np.array([1, 2])}, opset=13)
    with pytest.raises(ModelError, match=r"'r' has lengths of shape \[2\] for a batch of 3|contradict"):
        import_onnx(model)
