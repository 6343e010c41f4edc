"""The data of the experiment in benchmarks/tree_training.py."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="cluttered digits are made of scikit-learn's digits")


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "cluttered_digits.py"))


def test_the_same_seed_gives_the_same_images(script: dict[str, Any]) -> None:
    (train, test), (train_again, _), (other, _) = (script["make_splits"](12, 6, seed) for seed in (3, 3, 4))
    assert train.images.shape == (12, 1, 28, 28) and test.labels.shape == (6,)
    assert train.images.dtype == np.float32 and 0 <= train.images.min() < train.images.max() <= 1
    assert np.array_equal(train.images, train_again.images) and np.array_equal(train.labels, train_again.labels)
    assert not np.array_equal(train.images, other.images)


def test_train_and_test_are_made_of_disjoint_originals(script: dict[str, Any]) -> None:
    originals = []
    make_splits = script["make_splits"]
    make_splits.__globals__["_make"] = lambda images, *_: originals.append({image.tobytes() for image in images})
    make_splits(1, 1)
    make_splits(1, 1, validation=True)
    train, test, small_train, validation = originals
    assert len(train) > 1200 and len(test) > 450 and not train & test
    assert len(small_train) > 950 and len(validation) > 250 and not small_train & validation
    assert small_train | validation == train
