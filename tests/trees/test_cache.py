from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from bnn_compiler import solve_channel_tree
from bnn_compiler.trees import search, synthetic_search

from .matrices import related_channels

SIGNS = related_channels(16, 130, 6)


def test_a_stored_tree_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = solve_channel_tree(SIGNS, cache=tmp_path)
    monkeypatch.setattr(search, "search_tree", lambda *_: pytest.fail("solved again"))
    again = solve_channel_tree(SIGNS, cache=tmp_path)
    again.check(SIGNS)
    assert np.array_equal(tree.parents, again.parents)
    assert np.array_equal(tree.vectors, again.vectors)
    assert (tree.cost, tree.lower_bound, tree.roots, tree.method) == (
        again.cost, again.lower_bound, again.roots, again.method,
    )  # fmt: skip


def test_weights_and_options_make_the_key(tmp_path: Path) -> None:
    solve_channel_tree(SIGNS, cache=tmp_path, effort="fast")
    solve_channel_tree(SIGNS, cache=tmp_path, effort="fast", seed=1)
    solve_channel_tree(SIGNS, cache=tmp_path, effort="fast", node_overhead=1.0)
    solve_channel_tree(1 - SIGNS, cache=tmp_path, effort="fast")
    solve_channel_tree(SIGNS, cache=tmp_path, effort="fast")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "flip"])
def test_a_corrupt_entry_is_computed_again_with_a_warning(tmp_path: Path, damage: str) -> None:
    tree = solve_channel_tree(SIGNS, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
    entry.write_bytes({"truncate": whole[:middle], "empty": b"", "garbage": b"x" * 999, "flip": flipped}[damage])
    with pytest.warns(RuntimeWarning, match="computed again"):
        again = solve_channel_tree(SIGNS, cache=tmp_path)
    assert np.array_equal(tree.parents, again.parents)
    assert entry.read_bytes() != flipped
    solve_channel_tree(SIGNS, cache=tmp_path)


def test_a_tree_of_other_weights_is_not_taken(tmp_path: Path) -> None:
    solve_channel_tree(SIGNS, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    stored = dict(np.load(entry))
    stored["vectors"] = stored["vectors"] ^ np.uint8(0x80)
    with entry.open("wb") as file:
        np.savez(file, **stored)
    with pytest.warns(RuntimeWarning, match="computed again"):
        solve_channel_tree(SIGNS, cache=tmp_path).check(SIGNS)


def test_a_read_only_folder_costs_a_warning_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with pytest.warns(RuntimeWarning, match="could not be stored|computed again"):
        solve_channel_tree(SIGNS, cache=blocked, effort="fast").check(SIGNS)


def _solve_in_process(folder: Path) -> float:
    return solve_channel_tree(SIGNS, cache=folder, effort="fast").cost


def test_two_processes_may_share_a_folder(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, second = pool.map(_solve_in_process, [tmp_path, tmp_path])
    assert first == second
    assert len(list(tmp_path.iterdir())) == 1
    solve_channel_tree(SIGNS, cache=tmp_path, effort="fast").check(SIGNS)


def test_an_interrupted_solve_returns_the_best_tree_and_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupt(fraction: float) -> None:
        calls.append(fraction)
        if len(calls) == 3:
            raise KeyboardInterrupt

    tree = solve_channel_tree(SIGNS, cache=tmp_path, keep_on_interrupt=True, progress=interrupt)
    tree.check(SIGNS)
    assert tree.method.endswith("interrupted")
    assert list(tmp_path.iterdir()) == []
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        solve_channel_tree(SIGNS, cache=tmp_path, progress=interrupt)
    # Before there is any tree, nothing can be returned.
    monkeypatch.setattr(synthetic_search, "build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        solve_channel_tree(SIGNS, keep_on_interrupt=True)
    assert list(tmp_path.iterdir()) == []
