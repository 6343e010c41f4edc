"""Hostile and huge files (``tests/hostile`` makes them): each is compiled, or refused in one line, in bounded time.

Time limits are generous: they are there for what would take for ever. What is linear is told by counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bnn_compiler.errors import ModelError, UsageError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.limits import Limits

from .hostile import sweep
from .hostile.bombs import BOMBS
from .hostile.paths import PATHS
from .hostile.scaled import SCALED, chain, fan, many_inputs, model, node, tensor
from .isolation import IsolatedWorker

TIME_LIMIT = 120.0
MEMORY_LIMIT = 3 << 30
"""Bytes of address space, of which resident memory is a part, beyond the libraries'."""


def _judged(payloads: dict[str, bytes]) -> dict[str, str]:
    with IsolatedWorker("tests.hostile.judge:judge", time_limit=TIME_LIMIT, memory_limit=MEMORY_LIMIT) as worker:
        outcomes = {name: worker.run(payload) for name, payload in payloads.items()}
    return {name: outcome.text or f"! {outcome.fate}" for name, outcome in outcomes.items()}


def _findings(ends: dict[str, str]) -> dict[str, str]:
    return {name: end for name, end in ends.items() if end.startswith("!")}


def test_bombs() -> None:
    small = {name: make for name, make in BOMBS.items() if not name.startswith("huge")}
    ends = _judged({name: b"f" + make() for name, make in small.items()})
    assert _findings(ends) == {}
    for name in ("ConstantOfShape 2^33", "Expand 2^33", "Tile 2^33", "functions 2^60", "opset 999", "opset -1"):
        assert ends[name].startswith("refused")


def test_paths(tmp_path: Path) -> None:
    payloads = {}
    for number, (name, make) in enumerate(PATHS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        payloads[name] = b"p" + str(make(folder)).encode()
    # Who may read everything can read that one, too.
    ends = _judged({name: payload for name, payload in payloads.items() if name != "a file without rights"})
    assert _findings(ends) == {}
    assert all(end.startswith("refused") for end in ends.values())


def test_shapes_of_graphs() -> None:
    """Exponential steps show at a hundred nodes: 2^33 paths."""
    ends = _judged({name: b"i" + build(100).SerializeToString() for name, build in SCALED.items()})
    assert set(ends.values()) == {"accepted"}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", "compile"])
@pytest.mark.parametrize("name", sweep.cases([1_000, 10_000, 100_000]))
def test_command_line(name: str, command: str, tmp_path: Path) -> None:
    path = sweep.cases([1_000, 10_000, 100_000])[name](tmp_path)
    end = sweep.run(command, path, tmp_path, time_limit=600.0)
    assert end.finding == "", end.line


@pytest.mark.parametrize(
    ("build", "limits", "named"),
    [
        (lambda: chain(21), Limits(nodes=20), "nodes=21"),
        (lambda: fan(40), Limits(nodes=20), "nodes=39"),
        (lambda: model([node("Sum", ["x"] * 22, "y")], [tensor("x")], [tensor("y")]), Limits(nodes=20), "nodes=21"),
        (lambda: many_inputs(6), Limits(inputs=5), "inputs=6"),
        (lambda: SCALED["outputs"](6), Limits(outputs=5), "outputs=6"),
        (lambda: SCALED["constants"](6), Limits(constants=5), "constants=6"),
        (lambda: SCALED["layers"](12), Limits(layers=5), "layers=6"),
        (lambda: SCALED["concat"](6), Limits(operands=5), "operands=6"),
        (lambda: chain(6), Limits(name=6), "name=7"),
        (lambda: chain(6), Limits(work=23), "work=24"),
        (lambda: chain(6), Limits(memory=31), "memory=1GiB"),
    ],
)
def test_a_limit_is_named_with_the_way_out(build: Callable[[], onnx.ModelProto], limits: Limits, named: str) -> None:
    with pytest.raises(ModelError, match=rf"more than the limit of .*: --limits {named} raises it"):
        import_onnx(build(), limits=limits)
    import_onnx(build(), limits=Limits.parse(named))


def test_a_file_may_hold_more_nodes_than_are_compiled() -> None:
    constants = SCALED["constants"](60)
    assert len(import_onnx(constants, limits=Limits(nodes=20)).onnx_model.graph.node) == 1
    with pytest.raises(ModelError, match=r"the file holds 60 nodes, more than the limit of 50: --limits nodes=12 "):
        import_onnx(constants, limits=Limits(nodes=10))


@pytest.mark.parametrize("text", ["", "nodes", "nodes=", "nodes=0", "nodes=-1", "nodes=1e5", "knots=5", "nodes=5 000"])
def test_texts_that_are_no_limits(text: str) -> None:
    with pytest.raises(UsageError, match="limit"):
        Limits.parse(text)


def test_texts_that_are_limits() -> None:
    assert Limits.parse("nodes=100_000, memory=16GiB") == Limits(nodes=100_000, memory=16 << 30)
    with pytest.raises(UsageError, match=re.escape("the limit nodes must be a whole number above 0, not 1.5")):
        Limits(nodes=1.5)  # type: ignore[arg-type]
