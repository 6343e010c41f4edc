from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.frontend.onnx_graph import attribute_value

from .onnx_text import parse, random_feeds, run_onnx, run_relax


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("extent", [(7, 8), (9, 6)])
@pytest.mark.parametrize(("stride", "dilation", "kernel"), [(1, 1, 3), (2, 1, 3), (3, 1, 2), (2, 1, 4)])
def test_convolutions_match_onnx_runtime(
    mode: str, extent: tuple[int, int], stride: int, dilation: int, kernel: int
) -> None:
    height, width = extent
    model = parse(
        f"""g (float[1,2,{height},{width}] x, float[3,2,{kernel},{kernel}] w) => (float[N,C,H,W] y) {{
        y = Conv<auto_pad = "{mode}", strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]>(x, w) }}"""
    )
    feeds = random_feeds([("x", (1, 2, height, width)), ("w", (3, 2, kernel, kernel))])
    imported = import_onnx(model)
    [node] = imported.onnx_model.graph.node
    assert attribute_value(node, "auto_pad") is None
    [expected] = run_onnx(model, feeds)
    [found] = run_onnx(imported.onnx_model, feeds)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("mode", "pads"), [("SAME_UPPER", [1, 2, 2, 2]), ("SAME_LOWER", [2, 2, 1, 2])])
def test_dilation_widens_the_window(mode: str, pads: list[int]) -> None:
    # ONNX Runtime refuses dilation with auto_pad, so the rule of the module's docstring is worked out by hand here:
    # rows (4 - 1) * 2 + 1 * 3 + 1 - 7 = 3, columns (4 - 1) * 2 + 2 * 2 + 1 - 7 = 4.
    model = parse(
        f"""g (float[1,2,7,7] x, float[3,2,2,3] w) => (float[N,C,H,W] y) {{
        y = Conv<auto_pad = "{mode}", strides = [2, 2], dilations = [3, 2]>(x, w) }}"""
    )
    imported = import_onnx(model)
    assert attribute_value(imported.onnx_model.graph.node[0], "pads") == pads
    assert imported.outputs[0].shape == (1, 3, 4, 4)


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_pools_match_onnx_runtime(operator: str, mode: str) -> None:
    model = parse(
        f"""g (float[1,2,7,8] x) => (float[N,C,H,W] y) {{
        y = {operator}<auto_pad = "{mode}", kernel_shape = [3, 2], strides = [2, 3]>(x) }}"""
    )
    feeds = random_feeds([("x", (1, 2, 7, 8))])
    imported = import_onnx(model)
    [expected] = run_onnx(model, feeds)
    [found] = run_onnx(imported.onnx_model, feeds)
    np.testing.assert_array_equal(found, expected)
    # An average sums in another order than ONNX Runtime: a few roundings of values around 1.
    np.testing.assert_allclose(run_relax(imported.module, [feeds["x"]])[0], expected, rtol=0, atol=1e-6)


def test_unknown_modes() -> None:
    conv = 'g (float[1,2,7,8] x, float[3,2,3,3] w) => (float[N,C,H,W] y) {{ [c] y = Conv<auto_pad = "{}">(x, w) }}'
    with pytest.raises(ModelError, match="auto_pad"):
        import_onnx(parse(conv.format("SAME")))
