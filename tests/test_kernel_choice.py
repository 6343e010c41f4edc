"""Which kernels a layer gets, and that a tree of other weights is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnn_compiler.bitsliced_layer import BitslicedPlan, TreePlanning, bitsliced_kernels, plan_bitsliced
from bnn_compiler.cost_model import load_cost_model
from bnn_compiler.kernel_choice import ChoiceOptions, choose_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.options import Algorithm
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.target import parse_target
from bnn_compiler.trees.channel_tree import TreeError

ISA = detect_isa(parse_target("llvm -mcpu=znver4").tvm_target)


def layer(channels: int, size: int, *, flip: float = 0.5, dense: bool = False) -> BinarySpec:
    """Channels that differ from one common vector with probability ``flip`` per weight."""
    random = np.random.default_rng(0)
    taps = 1 if dense else 9
    signs = (random.random((1, channels * taps)) < 0.5) ^ (random.random((channels, channels * taps)) < flip)
    weights = np.where(signs, 1, -1).astype(np.float32)
    geometry = None if dense else ConvGeometry(1, channels, size, size, channels, (3, 3), pads=(1, 1, 1, 1))
    return BinarySpec(
        input_shape=(1, channels) if dense else (1, channels, size, size),
        prefix=(),
        suffix=(),
        predicate="ge",
        threshold=np.zeros((), np.float32),
        direction=None,
        low=-1.0,
        high=1.0,
        ring=None,
        geometry=geometry,
        rows=1 if dense else 0,
        weights=weights.T.copy() if dense else weights.reshape(channels, channels, 3, 3),
        scale=None,
        bias=None,
    )


def test_forced() -> None:
    algorithms: tuple[Algorithm, ...] = ("popcount", "bitsliced")
    for algorithm in algorithms:
        choice = choose_kernels(layer(16, 8), ISA, ChoiceOptions(algorithm))
        assert choice.kernels.algorithm == algorithm
        assert choice.details["source"] == "forced"


def test_dense_layers_have_one_kernel() -> None:
    choice = choose_kernels(layer(64, 1, dense=True), ISA, ChoiceOptions("bitsliced"))
    assert (choice.kernels.algorithm, choice.details) == ("popcount", {"source": "only"})


def test_nearly_equal_channels_on_a_large_map_are_bitsliced_and_a_small_map_is_not() -> None:
    alike = choose_kernels(layer(64, 64, flip=0.02), ISA, ChoiceOptions())
    assert alike.kernels.algorithm == "bitsliced"
    assert alike.details["tree"]["cost_ratio"] < 0.06
    assert alike.details["bitsliced_us"] < alike.details["popcount_us"]
    small = choose_kernels(layer(64, 4), ISA, ChoiceOptions())
    assert small.kernels.algorithm == "popcount"
    assert "tree" not in small.details, "no tree is solved where none can pay"


def test_the_choice_is_deterministic() -> None:
    first, second = (choose_kernels(layer(32, 32, flip=0.05), ISA, ChoiceOptions()) for _ in range(2))
    assert first.details == second.details
    for a, b in zip(first.kernels.product.constants, second.kernels.product.constants, strict=True):
        np.testing.assert_array_equal(a, b)


def test_depth_is_respected() -> None:
    options = ChoiceOptions("bitsliced", TreePlanning(max_depth=2))
    assert choose_kernels(layer(48, 8), ISA, options).details["tree"]["depth"] <= 2


def test_tree_of_other_weights_is_refused() -> None:
    spec = layer(16, 8)
    plan = plan_bitsliced(spec, ISA, load_cost_model(ISA), TreePlanning())
    (tree,) = plan.trees
    vectors = tree.vectors.copy()
    vectors[3, 5] ^= 1
    with pytest.raises(TreeError, match="other weights"):
        bitsliced_kernels(spec, ISA, BitslicedPlan(plan.layout, (replace(tree, vectors=vectors),)))


@pytest.mark.parametrize("cpu", ["znver4", "skylake-avx512", "haswell", "x86-64", "cortex-a72"])
def test_every_instruction_set_has_coefficients(cpu: str) -> None:
    model = load_cost_model(detect_isa(parse_target(f"llvm -mcpu={cpu}").tvm_target))
    geometry = ConvGeometry(1, 64, 32, 32, 64, (3, 3), pads=(1, 1, 1, 1))
    assert 0 < model.popcount_ns(geometry, 1) < 1e9
    twice = ConvGeometry(2, 64, 32, 32, 64, (3, 3), pads=(1, 1, 1, 1))
    assert model.popcount_ns(geometry, 1) < model.popcount_ns(twice, 1)
    assert model.addition_ns(100, 8) <= model.addition_ns(10_000, 8)
