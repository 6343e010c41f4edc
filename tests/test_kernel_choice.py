"""Which kernels a layer gets, and that a tree of other weights is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm

from bnn_compiler.kernels import kernel_measurement
from bnn_compiler.kernels.bitsliced_layer import (
    BitslicedPlan,
    TreePlanning,
    bitsliced_kernels,
    plan_bitsliced,
    star_plan,
)
from bnn_compiler.kernels.cost_model import CostModel, load_cost_model
from bnn_compiler.kernels.derived_constant import value_of
from bnn_compiler.kernels.kernel_choice import ChoiceOptions, choose_kernels
from bnn_compiler.kernels.kernel_measurement import Measurement
from bnn_compiler.kernels.kernel_work import ListWork
from bnn_compiler.kernels.popcount_layer import popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.options import Algorithm
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import NODE_FIELDS, ChannelTree, make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.popcount import Alphabet
from bnn_compiler.target import parse_target
from bnn_compiler.trees.channel_tree import TreeError
from bnn_compiler.trees.solve import solve_channel_tree
from tests.binary_specs import binary_conv, binary_dense

ISA = detect_isa(parse_target("llvm -mcpu=znver4").tvm_target)


def layer(channels: int, size: int, *, flip: float = 0.5) -> BinarySpec:
    """A 3x3 convolution whose channels differ from one common vector with probability ``flip`` per weight."""
    return binary_conv(ConvGeometry(1, channels, size, size, channels, (3, 3), pads=(1, 1, 1, 1)), flip=flip)


def test_forced() -> None:
    algorithms: tuple[Algorithm, ...] = ("popcount", "bitsliced")
    for algorithm in algorithms:
        choice = choose_kernels(layer(16, 8), ISA, ChoiceOptions(algorithm))
        assert choice.kernels.algorithm == algorithm
        assert choice.details["source"] == "forced"


def test_dense_layers_have_one_kernel() -> None:
    choice = choose_kernels(binary_dense(1, 64, 64), ISA, ChoiceOptions("bitsliced"))
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
        np.testing.assert_array_equal(value_of(a), value_of(b))


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


def test_a_vendor_has_its_own_costs_and_the_same_code() -> None:
    """Costs decide which kernel a layer gets, never what a kernel is."""
    intel = replace(ISA, vendor="intel")
    assert load_cost_model(intel) != load_cost_model(ISA)
    unmeasured = replace(ISA, popcount="avx2_lookup", vendor="intel")
    assert load_cost_model(unmeasured) == load_cost_model(replace(unmeasured, vendor="any"))
    spec = layer(32, 16)
    for build in (popcount_kernels, lambda spec, isa: bitsliced_kernels(spec, isa, star_plan(spec, isa))):
        one, other = (build(spec, isa) for isa in (ISA, intel))
        for a, b in zip(one.stages, other.stages, strict=True):
            tvm.ir.assert_structural_equal(a.function, b.function)


@pytest.mark.parametrize("cpu", ["znver4", "icelake-server", "skylake-avx512", "haswell", "x86-64", "cortex-a72"])
def test_every_instruction_set_has_coefficients(cpu: str) -> None:
    model = load_cost_model(detect_isa(parse_target(f"llvm -mcpu={cpu}").tvm_target))
    geometry = ConvGeometry(1, 64, 32, 32, 64, (3, 3), pads=(1, 1, 1, 1))
    twice = replace(geometry, batch=2)
    alphabets: tuple[Alphabet, ...] = ("bipolar", "unsigned", "ternary")
    for alphabet in alphabets:
        for zero_padded in (True, False):
            once = predictions(model, cpu, geometry, alphabet, zero_padded=zero_padded)
            more = predictions(model, cpu, twice, alphabet, zero_padded=zero_padded)
            assert all(0 < a < b < 1e9 for a, b in zip(once, more, strict=True))


def predictions(
    model: CostModel, cpu: str, geometry: ConvGeometry, alphabet: Alphabet, *, zero_padded: bool
) -> list[float]:
    """Popcount, and bit-sliced over every width of vectors."""
    isa = detect_isa(parse_target(f"llvm -mcpu={cpu}").tvm_target)
    times = [model.popcount_ns(geometry, alphabet, isa, zero_padded=zero_padded)]
    lanes = isa.vector_bits // 64
    while lanes >= 2:
        layout = make_layout(geometry, alphabet, isa, lanes)
        times.append(model.bitsliced_ns(layout, ListWork(500.0, 90.0, 64), zero_padded=zero_padded))
        assert 0 <= model.node_overhead(layout) < 200
        lanes //= 2
    return times


@pytest.mark.parametrize("alphabet", ["bipolar", "unsigned", "ternary"])
def test_predicted_lists_are_those_of_the_program(alphabet: Alphabet) -> None:
    geometry = ConvGeometry(1, 24, 9, 9, 20, (3, 3), groups=2)
    signs = np.random.default_rng(3).random((2, 10, 12 * 9)) < 0.5
    layout = make_layout(geometry, alphabet, ISA)
    for depth in (1, 4):
        trees = tuple(solve_channel_tree(group.astype(np.uint8), max_depth=depth, node_overhead=2.0) for group in signs)
        plan = BitslicedPlan(layout, trees)
        program = make_program(
            layout, [ChannelTree(tree.vectors.astype(np.bool_), tree.rooted_parents.tolist()) for tree in trees]
        )
        columns = [NODE_FIELDS.index(f"{kind}_{size}") for size in ("long", "short") for kind in ("minus", "plus")]
        blocks = program.nodes[:, columns].sum(axis=0)
        assert plan.lists == ListWork(float(blocks[0] + blocks[1]), float(blocks[2] + blocks[3]), len(program.nodes))
        assert plan.lists.planes == program.planes


def test_star_counts_every_channel_from_the_nearer_root() -> None:
    spec = layer(48, 8)
    plan = star_plan(spec, ISA)
    (tree,) = plan.trees
    tree.check(spec.binary_weights.signs.reshape(48, -1).astype(np.uint8))
    plus = spec.binary_weights.signs.reshape(48, -1).sum(axis=1)
    np.testing.assert_array_equal(tree.edge_costs, np.minimum(plus, 48 * 9 - plus))
    assert tree.depth == 1


class Clock:
    """Stands in for the timing of kernels: the second candidate is the fastest; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
        self.asked += 1
        for call in calls:
            call()  # the kernels were built and run
        return [float(abs(index - 1) + 1) * 1e3 for index in range(len(calls))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stub = Clock()
    monkeypatch.setattr(kernel_measurement, "_minima", stub)
    return stub


def native_options(cache: Path | None, algorithm: Algorithm = "auto") -> tuple[Isa, ChoiceOptions]:
    target = parse_target("native").tvm_target
    return detect_isa(target), ChoiceOptions(algorithm, measurement=Measurement(target, cache))


def test_measured_times_override_predictions_and_are_remembered(clock: Clock, tmp_path: Path) -> None:
    spec = layer(64, 16, flip=0.05)
    isa, options = native_options(tmp_path / "measurements")
    first, second = (choose_kernels(spec, isa, options) for _ in range(2))
    assert clock.asked == 1
    assert first.details == second.details
    assert first.details["source"] == "measured"
    times = {entry["name"]: entry["measured_us"] for entry in first.details["candidates"]}
    assert first.details["chosen"] == min(times, key=lambda name: times[name])
    assert first.kernels.algorithm == ("popcount" if first.details["chosen"] == "popcount" else "bitsliced")


def test_other_weights_are_measured_anew(clock: Clock, tmp_path: Path) -> None:
    isa, options = native_options(tmp_path)
    for flip in (0.05, 0.06):
        choose_kernels(layer(64, 16, flip=flip), isa, options)
    assert clock.asked == 2


def test_a_damaged_entry_is_measured_again_with_a_warning(clock: Clock, tmp_path: Path) -> None:
    spec = layer(64, 16, flip=0.05)
    isa, options = native_options(tmp_path)
    wanted = choose_kernels(spec, isa, options)
    (entry,) = tmp_path.glob("*.json")
    for damage in ("", '{"popcount": "soon"}'):
        entry.write_text(damage)
        with pytest.warns(RuntimeWarning, match="measured again"):
            assert choose_kernels(spec, isa, options).details == wanted.details
    assert clock.asked == 3


def test_forced_kernels_are_not_measured_where_there_is_one(clock: Clock, tmp_path: Path) -> None:
    isa, options = native_options(tmp_path, "popcount")
    assert choose_kernels(layer(64, 16), isa, options).details == {"source": "forced"}
    assert clock.asked == 0


def test_measuring_times_real_kernels() -> None:
    isa, options = native_options(None)
    choice = choose_kernels(layer(16, 8), isa, options)
    times = [entry["measured_us"] for entry in choice.details["candidates"]]
    assert all(0 < time < 1e6 for time in times)
