from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bnn_compiler.cli.main import run
from bnn_compiler.recognition.layer_signs import binary_layer_signs
from bnn_compiler.trees.problem import pack_bits, unpack_bits
from tests.conftest import ModelFinder


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BNNC_CACHE", str(tmp_path / "cache"))


def test_table_json_and_pictures(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report, plot = tmp_path / "trees.json", tmp_path / "tree.svg"
    assert run(["tree", str(digits), "--effort", "fast", "--json", str(report), "--plot", str(plot)]) == 0
    out = capfd.readouterr().out
    signs = binary_layer_signs(digits)
    entries = json.loads(report.read_text(encoding="utf-8"))["layers"]
    assert [entry["name"] for entry in entries] == [layer.name for layer in signs]
    pictures = sorted(tmp_path.glob("tree*.svg"))
    assert len(pictures) == len(signs)
    for entry, layer in zip(entries, signs, strict=True):
        assert layer.name in out
        assert f"{entry['ratio']:.3f}" in out
        assert 0 < entry["ratio"] < 0.5
        assert _planes_of(entry["trees"][0], layer.groups[0]) == sum(entry["trees"][0]["edge_costs"])
    for picture, layer in zip(pictures, signs, strict=True):
        root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
        titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
        assert sum(title.startswith("channel") for title in titles) == len(layer.groups[0])


def _planes_of(tree: dict[str, list[object]], signs: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    """Compute every node from its parent as a kernel would, and count."""
    weights = signs.shape[1]
    synthetic = [[int(bit) for bit in str(row)] for row in tree["synthetic_vectors"]]
    vectors = np.concatenate([signs, np.array(synthetic, np.uint8).reshape(-1, weights)])
    roots = {-1: np.zeros(weights, np.uint8), -2: np.ones(weights, np.uint8)}
    total = 0
    for node, parent in enumerate(tree["parents"]):
        assert isinstance(parent, int)
        total += int((vectors[node] != (vectors[parent] if parent >= 0 else roots[parent])).sum())
    return total


def test_layer_is_chosen_by_name(digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = [layer.name for layer in binary_layer_signs(digits)]
    plot = tmp_path / "one.svg"
    assert run(["tree", str(digits), "--layer", names[0], "--plain", "--max-depth", "2", "--plot", str(plot)]) == 0
    out = capfd.readouterr().out
    assert names[0] in out
    assert not any(name in out for name in names[1:])
    assert plot.is_file()
    assert run(["tree", str(digits), "--layer", "nothing"]) == 2
    err = capfd.readouterr().err
    assert "no binary layer 'nothing'" in err
    assert names[0] in err


def test_groups_have_trees_of_their_own(small_model: ModelFinder, tmp_path: Path) -> None:
    report = tmp_path / "trees.json"
    assert run(["tree", str(small_model("grouped4")), "-q", "--json", str(report)]) == 0
    (entry,) = json.loads(report.read_text(encoding="utf-8"))["layers"]
    assert len(entry["trees"]) == entry["groups"] == 4
    assert entry["shared_sum_cost"] == 4 * entry["weights"]


def test_a_model_without_binary_layers(small_model: ModelFinder, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["tree", str(small_model("float_act"))]) == 0
    assert "no binary layers" in capfd.readouterr().out


def test_signs_are_those_of_the_model(small_model: ModelFinder) -> None:
    (layer,) = binary_layer_signs(small_model("base_sign_conv"))
    assert set(np.unique(layer.groups[0])) == {0, 1}
    assert layer.channels == len(layer.groups[0])


def test_bits_are_packed_little_end_first() -> None:
    bits = np.random.default_rng(0).integers(0, 2, (3, 70), dtype=np.uint8)
    words = pack_bits(bits)
    assert words.shape == (3, 2)
    assert all((int(words[0, i // 64]) >> (i % 64)) & 1 == bits[0, i] for i in range(70))
    assert np.array_equal(unpack_bits(words, 70), bits)
