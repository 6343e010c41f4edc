"""Random chains of the operators that exporters write around binary layers, compiled and compared with ONNX Runtime.

Several chains make one model, because building takes longer than running. ``tests/random_graphs/sweep.py`` runs many
more, each model in a process that may crash.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.random_graphs.chains import random_model
from tests.random_graphs.comparison import disagreements

CHAINS = 10
MODELS = 8


@pytest.mark.parametrize("seed", range(MODELS))
def test_random_chains(seed: int) -> None:
    random = Random(seed)
    model = random_model(random, CHAINS)
    algorithm = random.choice(["auto", "auto", "popcount", "bitsliced", "float"])
    sign_zero = random.choice(["plus", "plus", "plus", "exact"])
    assert disagreements(model, algorithm=algorithm, sign_zero=sign_zero) == []


def test_chains_are_what_they_are_meant_to_be() -> None:
    """The test above could not fail if chains held no binary layers, or no results with one right answer."""
    models = [random_model(Random(seed), CHAINS) for seed in range(MODELS)]
    outputs = sum(len(model.model.graph.output) for model in models)
    assert outputs >= CHAINS * MODELS
    assert sum(len(model.exact) for model in models) >= outputs / 2
    assert sum(len(model.expected) for model in models) >= CHAINS * MODELS / 4
