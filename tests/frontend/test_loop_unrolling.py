"""Scan and Loop, written out, against ONNX Runtime."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators, parse, run_onnx, run_relax

F32 = np.float32


def _check(model: onnx.ModelProto, feeds: dict[str, Array]) -> onnx.ModelProto:
    """Sums and maxima of the same numbers in the same order: exactly ONNX Runtime's."""
    imported = import_onnx(model)
    assert not {"Loop", "Scan"} & set(operators(imported.onnx_model))
    expected = run_onnx(model, feeds)
    for results in (
        run_onnx(imported.onnx_model, feeds),
        run_relax(imported.module, [feeds[spec.name] for spec in imported.inputs]),
    ):
        for found, want in zip(results, expected, strict=True):
            np.testing.assert_array_equal(found, want)
    return imported.onnx_model


def _scan(attributes: str = "") -> str:
    """Two scanned inputs, one state, two scan outputs; the body reads a tensor from outside and has a constant."""
    return f"""s, u, v = Scan (h, x, z) <num_scan_inputs: int = 2, body: graph = b (float[3] a, float[3] p, float[3] q)
        => (float[3] c, float[3] d, float[3] e) <float[3] k = {{1, 2, 3}}> {{
            w = Neg(outer) t = Mul(p, k) g = Add(t, a) c = Add(g, w) d = Sub(c, q) e = Identity(p) }} {attributes}>"""


def _feeds(shape: tuple[int, ...]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shapes = {"x": shape, "z": shape, "h": (3,), "outer": (3,)}
    return {name: rng.standard_normal(extent).astype(F32) for name, extent in shapes.items()}


@pytest.mark.parametrize(
    ("shape", "result", "attributes"),
    [
        ((5, 3), "5,3", ""),
        (
            (3, 4),
            "3,4",
            ", scan_input_axes = [1, -1], scan_output_axes = [1, -1], scan_input_directions = [0, 1], "
            "scan_output_directions = [1, 0]",
        ),
        ((1, 3), "1,3", ", scan_input_directions = [1, 1]"),
    ],
)
def test_scan(shape: tuple[int, ...], result: str, attributes: str) -> None:
    extents = ",".join(map(str, shape))
    model = parse(
        f"""g (float[{extents}] x, float[{extents}] z, float[3] h, float[3] outer)
        => (float[3] s, float[{result}] u, float[{result}] v) {{ {_scan(attributes)} }}"""
    )
    unrolled = _check(model, _feeds(shape))
    assert operators(unrolled).count("Neg") == 1, "what is the same in each step is computed once"


def _loop(trips: str = "n", condition: str = "", body_condition: str = "Identity(on)", more: str = "") -> str:
    return f"""a, s = Loop ({trips}, {condition}, x) <body: graph = b (int64 i, bool on, float[4] p)
        => (bool go, float[4] q, float[4] r) {{ {more} go = {body_condition}
            f = Cast<to = 1>(i) t = Add(p, f) q = Mul(t, x) r = Max(q, p) }}>"""


def _loop_model(loop: str, trips: int = 3, inputs: str = "float[4] x") -> onnx.ModelProto:
    constants = f"int64 n = {{{trips}}}, bool yes = {{1}}, bool no = {{0}}"
    return parse(f"g ({inputs}) => (float[4] a, float[?,4] s) <{constants}> {{ {loop} }}")


@pytest.mark.parametrize(
    "loop",
    [
        _loop(),
        _loop(condition="yes"),
        _loop(body_condition="Identity(yes)"),
        _loop(more="one = Constant<value = bool {1}>()", body_condition="Cast<to = 9>(one)"),
        _loop(more="none = Constant<value = bool {0}>()", body_condition="Identity(none)"),
    ],
)
def test_loop(loop: str) -> None:
    """The last one stops after its first step."""
    x = np.array([1, -2, 0.5, 3], F32)
    _check(_loop_model(loop), {"x": x})


def test_loops_in_loops_and_branches() -> None:
    """The trip count of the inner loop is the number of the outer one's step, from a shape."""
    text = """g (float[3,4] x, bool c) => (float[4] y) {
        shape = Shape(x) zero = Constant<value = int64 {0}>() n = Gather(shape, zero)
        y = If(c) <then_branch = t () => (float[4] p) {
            start = Gather(x, zero)
            p = Loop(n, , start) <body: graph = o (int64 i, bool on, float[4] v) => (bool go, float[4] w) {
                go = Identity(on) row = Gather(x, i)
                w = Loop(i, , v) <body: graph = m (int64 j, bool on2, float[4] d) => (bool go2, float[4] e) {
                    go2 = Identity(on2) k = Add(d, row) e = Neg(k) }> }> },
          else_branch = e () => (float[4] q) { q = Gather(x, zero) }> }"""
    model = parse(text)
    for condition in (True, False):
        x = np.random.default_rng(1).standard_normal((3, 4)).astype(F32)
        _check(model, {"x": x, "c": np.array(condition)})


def test_no_steps() -> None:
    model = parse("""g (float[4] x) => (float[4] a) <int64 n = {0}> {
        a = Loop (n, , x) <body: graph = b (int64 i, bool on, float[4] p) => (bool go, float[4] q)
            { go = Identity(on) q = Neg(p) }> }""")
    _check(model, {"x": np.ones(4, F32)})
    with pytest.raises(UnsupportedOperatorError, match=r"Loop node .* cannot be compiled: it has no steps"):
        import_onnx(_loop_model(_loop(), 0))


@pytest.mark.parametrize("trips", [10**9, 2**63 - 1])
def test_many_steps_are_refused_at_once(trips: int) -> None:
    started = time.perf_counter()
    with pytest.raises(UnsupportedOperatorError, match=f"Loop node .* has {trips} steps, which would be"):
        import_onnx(_loop_model(_loop(), trips))
    assert time.perf_counter() - started < 5  # it takes milliseconds; the machine may be busy


def test_loops_that_multiply_are_refused_at_once() -> None:
    """Four nested loops of 100 steps: each alone is small."""
    body = "out0 = Neg(in0)"
    for depth in range(4):
        body = f"""out{depth + 1} = Loop(n, , in{depth + 1}) <body: graph = b{depth}
            (int64 i{depth}, bool on{depth}, float[4] in{depth}) => (bool go{depth}, float[4] out{depth})
            {{ go{depth} = Identity(on{depth}) {body} }}>"""
    started = time.perf_counter()
    with pytest.raises(UnsupportedOperatorError, match="are supported"):
        import_onnx(parse(f"g (float[4] in4) => (float[4] out4) <int64 n = {{100}}> {{ {body} }}"))
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("loop", "inputs", "message"),
    [
        (_loop("m"), "float[4] x, int64 m", "its trip count is not a constant"),
        (_loop(condition="c"), "float[4] x, bool c", "its condition is not a constant"),
        (_loop("", "yes"), "float[4] x", "its trip count is not a constant"),
        (_loop(body_condition="IsNaN(h)", more="h = Cast<to = 1>(i)"), "float[4] x", "its body computes the condition"),
    ],
)
def test_loops_without_a_known_number_of_steps(loop: str, inputs: str, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=f"{message}; export the network with a fixed number of steps"):
        import_onnx(_loop_model(loop, inputs=inputs))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (", scan_input_axes = [1]", "contradict|has 1 scan_input_axes; 2 are needed"),
        (", scan_input_axes = [0, 2]", "contradict|axis"),
        (", scan_input_axes = [0, 1]", "contradict|there must be one number"),
    ],
)
def test_contradictions(attributes: str, message: str) -> None:
    model = parse(
        f"g (float[5,3] x, float[5,3] z, float[3] h, float[3] outer) => (float[3] s) {{ {_scan(attributes)} }}"
    )
    with pytest.raises(ModelError, match=message):
        import_onnx(model)


def test_the_first_form_of_scan() -> None:
    """It has the lengths of the sequences as its first operand, and a batch axis."""
    body = "b (float[2] a, float[2] p) => (float[2] c, float[2] d) { c = Add(a, p) d = Identity(c) }"
    text = f"""g (float[1,2] h, float[1,3,2] x) => (float[1,2] s, float[1,3,2] u) {{
        s, u = Scan (, h, x) <num_scan_inputs: int = 1, body: graph = {body}> }}"""
    with pytest.raises(UnsupportedOperatorError, match="export the model with operator set 9 or newer"):
        import_onnx(parse(text, opset=8))
