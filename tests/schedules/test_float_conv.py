"""Float convolutions against ONNX Runtime over a seeded matrix of geometries, per vector width."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bnn_compiler.passes import lower_float_ops
from bnn_compiler.schedules.float_conv import ConvPlan, pack_conv_weight, plan_conv
from bnn_compiler.schedules.float_conv_channels_plan import ChannelConvPlan, pack_channel_weight, plan_channel_conv
from bnn_compiler.schedules.float_conv_choice import plan_float_conv, plan_pooled_conv
from bnn_compiler.schedules.float_tile import TileShape
from bnn_compiler.schedules.float_vector import FloatVector
from bnn_compiler.schedules.geometry import ConvGeometry
from tests.schedules.float_harness import FLOAT_CPUS, Layer, assert_sums_close, node, normal

# (batch, in channels, height, width), (out channels, kernel height, width), strides, pads, dilations, groups
Case = tuple[
    tuple[int, int, int, int], tuple[int, int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int], int
]

CASES: dict[str, Case] = {
    "one pixel": ((1, 1, 1, 1), (1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "one channel": ((1, 1, 9, 9), (1, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "stem": ((1, 3, 34, 34), (20, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    "stride 4": ((1, 3, 43, 43), (24, 11, 11), (4, 4), (0, 0, 0, 0), (1, 1), 1),
    "asymmetric": ((2, 5, 13, 17), (7, 3, 2), (2, 1), (0, 2, 1, 0), (1, 1), 1),
    "wide pads": ((1, 4, 5, 5), (9, 3, 3), (1, 1), (4, 3, 2, 5), (1, 1), 1),
    "wide pads, strided": ((1, 2, 4, 3), (5, 3, 3), (2, 3), (5, 6, 7, 4), (1, 1), 1),
    "dilated": ((1, 6, 20, 19), (11, 3, 3), (1, 1), (2, 2, 2, 2), (2, 3), 1),
    "dilated, strided": ((1, 3, 21, 22), (8, 3, 3), (2, 2), (1, 1, 1, 1), (3, 2), 1),
    "stride over kernel": ((1, 8, 17, 17), (12, 1, 1), (3, 2), (0, 0, 0, 0), (1, 1), 1),
    "grouped": ((2, 12, 11, 11), (18, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3),
    "depthwise": ((1, 16, 15, 15), (16, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 16),
    "depthwise, strided": ((2, 7, 16, 18), (7, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 7),
    "depthwise, two each": ((1, 5, 12, 12), (10, 5, 3), (1, 1), (2, 1, 2, 1), (1, 1), 5),
    "pointwise": ((1, 40, 14, 14), (70, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "many channels, few pixels": ((1, 130, 7, 7), (65, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "kernel covers image": ((1, 5, 6, 7), (33, 6, 7), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "rows only": ((1, 3, 30, 1), (6, 9, 1), (2, 1), (4, 0, 4, 0), (1, 1), 1),
}


def conv_layer(case: Case) -> Layer:
    shape, (out_channels, *kernel), strides, pads, dilations, groups = case
    weights = {"w": normal((out_channels, shape[1] // groups, *kernel), 1), "b": normal((out_channels,), 2)}
    conv = node("Conv", "x w b", strides=strides, pads=pads, dilations=dilations, group=groups)
    return Layer((conv,), normal(shape), weights)


def force(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every convolution that can computed by ``kernel``."""
    forced = {"pixels": plan_conv, "channels": lambda *args: plan_channel_conv(*args) or plan_conv(*args)}[kernel]
    monkeypatch.setattr(lower_float_ops, "plan_float_conv", forced)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_geometries(case: Case, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force("pixels", monkeypatch)
    layer = conv_layer(case)
    assert_sums_close(layer, cpu, math.prod(layer.weights["w"].shape[1:]) + 1)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] == 1])
def test_channels_in_the_lanes(name: str, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force("channels", monkeypatch)
    layer = conv_layer(CASES[name])
    assert_sums_close(layer, cpu, math.prod(layer.weights["w"].shape[1:]) + 1)


@pytest.mark.parametrize("seed", range(12))
def test_random_geometries(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    force(("pixels", "channels")[seed % 2], monkeypatch)
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 1, 2, 3]))
    kernel, strides, dilations = (tuple(int(v) for v in rng.integers(1, high, 2)) for high in (6, 4, 3))
    height, width = ((k - 1) * d + int(rng.integers(1, 20)) for k, d in zip(kernel, dilations, strict=True))
    shape = (int(rng.integers(1, 3)), groups * int(rng.integers(1, 9)), height, width)
    pads = tuple(int(v) for v in rng.integers(0, 3, 4))
    case = (shape, (groups * int(rng.integers(1, 20)), *kernel), strides, pads, dilations, groups)
    layer = conv_layer(case)  # type: ignore[arg-type]
    assert_sums_close(layer, FLOAT_CPUS[seed % 3], math.prod(layer.weights["w"].shape[1:]) + 1)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize(("length", "stride", "pads"), [(40, 1, (4, 4)), (41, 2, (0, 3)), (9, 3, (1, 0))])
@pytest.mark.parametrize("kernel", ["pixels", "channels"])
def test_one_dimension(
    length: int, stride: int, pads: tuple[int, int], kernel: str, cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kernel, monkeypatch)
    conv = node("Conv", "x w b", strides=[stride], pads=pads)
    weights = {"w": normal((6, 5, 7), 1), "b": normal((6,), 2)}
    assert_sums_close(Layer((conv,), normal((2, 5, length)), weights), cpu, 36)


# Of a max-pool: kernel, strides, pads.
Pool = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]

POOLED: dict[str, tuple[Case, Pool]] = {
    "ResNet stem": (((1, 3, 38, 38), (20, 7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1), ((3, 3), (2, 2), (1, 1, 1, 1))),
    "late pads": (((1, 3, 37, 40), (33, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1), ((3, 3), (2, 2), (0, 0, 1, 1))),
    "disjoint windows": (((2, 4, 12, 14), (9, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1), ((2, 2), (2, 2), (0,) * 4)),
    "gaps": (((1, 4, 17, 17), (16, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), ((2, 2), (3, 3), (0,) * 4)),
    "overlaps": (((2, 2, 11, 13), (17, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1), ((5, 4), (1, 2), (2, 1, 2, 2))),
    "one window": (((1, 2, 5, 5), (3, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), ((5, 5), (1, 1), (0,) * 4)),
}


def pooled_layer(case: Case, pool: Pool) -> Layer:
    """A convolution, its bias, a ReLU and a max-pool."""
    conv = conv_layer(case)
    (node_of_conv,) = conv.nodes
    node_of_conv.output[0] = "c"
    kernel, strides, pads = pool
    pool_node = node("MaxPool", "r", kernel_shape=kernel, strides=strides, pads=pads)
    return Layer((node_of_conv, node("Relu", "c", "r"), pool_node), conv.x, conv.weights)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize(("case", "pool"), POOLED.values(), ids=POOLED.keys())
def test_max_pool_in_the_kernel(case: Case, pool: Pool, cpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []

    def fused(geometry: ConvGeometry, window: ConvGeometry, vector: FloatVector) -> ChannelConvPlan | None:
        plans.append(plan_channel_conv(geometry, vector, window))
        return plans[-1]

    monkeypatch.setattr(lower_float_ops, "plan_pooled_conv", fused)
    layer = pooled_layer(case, pool)
    # A maximum is no further off than the worst of what it is taken of; magnitudes are the largest of a window's.
    assert_sums_close(layer, cpu, math.prod(layer.weights["w"].shape[1:]) + 1)
    assert plans
    assert None not in plans


@pytest.mark.parametrize("rows_per_block", [1, 2, 3, 5])
def test_rows_kept_between_blocks(rows_per_block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the height of a block, its first windows read rows that the block before has computed."""

    def in_blocks(geometry: ConvGeometry, window: ConvGeometry, vector: FloatVector) -> ChannelConvPlan:
        return ChannelConvPlan(geometry, vector.lanes, TileShape(5, 1), rows_per_block, window)

    monkeypatch.setattr(lower_float_ops, "plan_pooled_conv", in_blocks)
    layer = pooled_layer(*POOLED["ResNet stem"])
    assert_sums_close(layer, "skylake-avx512", 148)


def test_choice_of_kernel() -> None:
    vector = FloatVector(16, 32)
    # A map of 49 pixels is three vectors and one pixel; a depthwise channel is no vector.
    assert isinstance(plan_float_conv(ConvGeometry(1, 256, 7, 7, 512, (1, 1)), vector), ChannelConvPlan)
    assert isinstance(plan_float_conv(ConvGeometry(1, 64, 14, 14, 64, (3, 3), groups=64), vector), ConvPlan)
    assert isinstance(plan_float_conv(ConvGeometry(1, 3, 32, 32, 3, (3, 3)), vector), ConvPlan)
    stem = ConvGeometry(1, 3, 224, 224, 64, (7, 7), (2, 2), (3, 3, 3, 3))
    pool = ConvGeometry(1, 64, 112, 112, 64, (3, 3), (2, 2), (1, 1, 1, 1), groups=64)
    assert plan_pooled_conv(stem, pool, vector) is not None


def test_channels_are_packed_by_tile() -> None:
    plan = ChannelConvPlan(ConvGeometry(1, 2, 8, 8, 6, (1, 2)), 4, TileShape(rows=3, vectors=1), rows_per_block=1)
    weight = np.arange(24, dtype=np.float32).reshape(6, 2, 1, 2)
    packed = pack_channel_weight(plan, weight)
    assert packed.shape == (2, 4, 4)  # tiles of 4 of the 6 channels, taps with input channels innermost, channels
    assert packed[0, :, 1].tolist() == [4, 6, 5, 7]
    assert packed[1].tolist() == [[16, 20, 0, 0], [18, 22, 0, 0], [17, 21, 0, 0], [19, 23, 0, 0]]


def test_weights_are_packed_by_tile() -> None:
    geometry = ConvGeometry(1, 4, 8, 8, 6, (1, 1), groups=2)
    plan = ConvPlan(geometry, 4, TileShape(rows=2, vectors=2), rows_per_block=1)
    weight = np.arange(12, dtype=np.float32).reshape(6, 2, 1, 1)
    packed = pack_conv_weight(plan, weight)
    assert packed.shape == (2, 2, 2, 2)  # groups, tiles of 2 of the 3 channels, taps, rows
    assert packed[1, 0].tolist() == [[6, 8], [7, 9]]
    assert packed[1, 1].tolist() == [[10, 0], [11, 0]]


@pytest.mark.parametrize("vector", [FloatVector(16, 32), FloatVector(8, 16), FloatVector(4, 32), FloatVector(4, 16)])
@pytest.mark.parametrize("channels", [1, 3, 64, 512])
def test_tiles_fit_the_registers(vector: FloatVector, channels: int) -> None:
    tile = plan_conv(ConvGeometry(1, 16, 14, 14, channels, (3, 3), pads=(1, 1, 1, 1)), vector).tile
    # Accumulators, one step's vectors, and the broadcast scalar.
    assert tile.rows * tile.vectors + tile.vectors + 1 <= vector.registers
    assert tile.rows <= channels
    channel_plan = plan_channel_conv(ConvGeometry(1, 16, 14, 14, channels, (3, 3), pads=(1, 1, 1, 1)), vector)
    assert channel_plan is not None
    assert channel_plan.tile.rows * channel_plan.tile.vectors + channel_plan.tile.vectors + 1 <= vector.registers
