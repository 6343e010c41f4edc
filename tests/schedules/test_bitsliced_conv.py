"""Bit-sliced convolutions bit for bit against the integer convolution of NumPy, and against the popcount kernel."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import PlaneLayout, make_bit_planes
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import ChannelTree, make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.popcount import OutDtype
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.reference import epilogue_reference
from tests.schedules.bitsliced_harness import TREES, TreeKind, grow_trees, random_layer, random_signs
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, cpu_target, misaligned, runnable_isa
from tests.schedules.paddings import PADDINGS, Padding

GEOMETRIES = {
    "3x3": ConvGeometry(1, 64, 14, 14, 32, (3, 3), pads=(1, 1, 1, 1)),
    "one-pixel": ConvGeometry(1, 70, 1, 1, 9, (1, 1)),
    "one-channel": ConvGeometry(1, 3, 5, 6, 1, (1, 3)),
    "pointwise": ConvGeometry(2, 100, 5, 9, 7, (1, 1)),
    "pointwise-strided": ConvGeometry(1, 64, 9, 9, 8, (1, 1), strides=(2, 2)),
    "whole-blocks": ConvGeometry(1, 20, 32, 32, 5, (3, 3), pads=(1, 1, 1, 1)),
    "whole-blocks-and-64": ConvGeometry(1, 5, 24, 24, 6, (3, 3), pads=(1, 1, 1, 1)),
    "images-are-blocks": ConvGeometry(3, 9, 16, 32, 4, (2, 2), pads=(1, 0, 0, 1)),
    "batch-17": ConvGeometry(17, 30, 7, 7, 6, (3, 3), pads=(1, 1, 1, 1)),
    "batch-of-pixels": ConvGeometry(9, 65, 1, 3, 5, (1, 3), pads=(0, 1, 0, 1)),
    "everything": ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2),
    "depthwise": ConvGeometry(1, 6, 8, 8, 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "5x5": ConvGeometry(1, 33, 9, 10, 9, (5, 5), pads=(2, 2, 2, 2)),
    "7x7-stride-2": ConvGeometry(1, 3, 21, 20, 8, (7, 7), (2, 2), (3, 3, 3, 3)),
    "dilated": ConvGeometry(1, 64, 12, 12, 4, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    # 6 x 7 taps of padding make 130 border classes, more than one lookup takes.
    "many-classes": ConvGeometry(1, 8, 9, 13, 4, (6, 7), pads=(5, 6, 6, 5)),
    "pads-wider-than-kernel": ConvGeometry(1, 8, 3, 3, 4, (2, 2), pads=(3, 2, 4, 3)),
    # 9216 planes: indices are not stored times eight.
    "deep": ConvGeometry(1, 1000, 4, 5, 3, (3, 3), pads=(1, 1, 1, 1)),
    # 15 bits: un-sliced as fields everywhere.
    "deepest": ConvGeometry(1, 700, 5, 6, 3, (5, 5), pads=(2, 2, 2, 2)),
}


@dataclass(frozen=True)
class Case:
    geometry: ConvGeometry
    padding: Padding
    tree: TreeKind
    has_scale: bool = False
    has_bias: bool = False
    out_dtype: OutDtype = "int32"
    lanes: int | None = None


class Layer:
    """The kernels of a case, their arguments, and what they must give."""

    def __init__(self, case: Case, isa: Isa, seed: int) -> None:
        rng = np.random.default_rng(seed)
        geometry, padding = case.geometry, case.padding
        self.case = case
        self.signs = random_signs(geometry, case.tree, rng)
        self.layout = make_layout(geometry, padding.alphabet, isa, case.lanes)
        self.program = make_program(self.layout, grow_trees(self.signs, geometry.groups, case.tree, rng))
        self.bits, z = random_layer(geometry, padding, self.signs, rng)
        constants = bitsliced_conv2d_constants(self.layout, self.signs, zero_padded=padding.zero_padded)
        scale, bias = (
            rng.standard_normal(geometry.out_channels).astype(np.float32) if present else None
            for present in (case.has_scale, case.has_bias)
        )
        self.kernels = {
            "planes": make_bit_planes(self.layout, "planes"),
            "count": bitsliced_conv2d(
                self.layout,
                self.program,
                constants,
                has_scale=case.has_scale,
                has_bias=case.has_bias,
                out_dtype=case.out_dtype,
                isa=isa,
            ),
        }
        parameters = [array for array in (scale, bias) if array is not None]
        self.arguments: list[Array] = [*self.program.tables, *constants, *parameters]
        self.expected: Array = z
        if case.out_dtype == "float32":
            column = (-1, 1, 1)
            self.expected = epilogue_reference(
                z,
                None if scale is None else scale.reshape(column),
                None if bias is None else bias.reshape(column),
                fused=isa.fused_multiply_add,
            )


def _check(cpu: str, cases: dict[str, Case]) -> None:
    isa = runnable_isa(cpu)
    layers = {name: Layer(case, isa, seed) for seed, (name, case) in enumerate(cases.items())}
    kernels = CompiledKernels(
        cpu,
        {f"{kind}{i}": kernel for i, layer in enumerate(layers.values()) for kind, kernel in layer.kernels.items()},
    )
    for i, (name, layer) in enumerate(layers.items()):
        planes = kernels.run(f"planes{i}", [layer.bits], layer.layout.shape, "uint64")
        inputs = [planes, *layer.arguments]
        output = kernels.run(f"count{i}", inputs, layer.expected.shape, layer.case.out_dtype)
        np.testing.assert_array_equal(output, layer.expected, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_shapes(cpu: str) -> None:
    """Every geometry, each under one of the paddings and with one of the trees; a third of them on the older CPUs."""
    pairs = itertools.product(TREES, PADDINGS.values())
    cases = {}
    for (name, geometry), (tree, padding) in zip(GEOMETRIES.items(), itertools.islice(pairs, 0, None, 2), strict=False):
        cases[name] = Case(geometry, padding, tree)
    assert len(cases) == len(GEOMETRIES)
    _check(cpu, cases if cpu == "znver4" else dict(list(cases.items())[X86_CPUS.index(cpu) - 1 :: 3]))


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_trees(cpu: str) -> None:
    """Every kind of tree, with bits of both signs in the ring."""
    geometry = ConvGeometry(2, 37, 6, 9, 11, (3, 3), pads=(1, 1, 1, 1), groups=1)
    paddings = ("bipolar-zero", "bipolar-plus", "ternary")
    cases = {f"{tree} {name}": Case(geometry, PADDINGS[name], tree) for tree in TREES for name in paddings}
    _check(cpu, dict(list(cases.items())[:: 2 if cpu == "znver4" else 5]))


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_epilogues(cpu: str) -> None:
    flags = itertools.product(
        ["3x3", "batch-17", "everything"],
        PADDINGS.values(),
        [(False, False), (True, False), (False, True), (True, True)],
    )
    cases = {
        str(i): Case(GEOMETRIES[name], padding, "random", *flag, "float32")
        for i, (name, padding, flag) in enumerate(flags)
        if i % (11 if cpu == "znver4" else 31) == 0
    }
    _check(cpu, cases)


@pytest.mark.parametrize("lanes", [8, 4, 2])
@pytest.mark.parametrize("cpu", ["znver4"])
def test_lanes(cpu: str, lanes: int) -> None:
    """Vectors narrower than the CPU's, with one, two and several blocks."""
    cases = {}
    for name in ("one-pixel", "whole-blocks-and-64", "batch-17"):
        cases[name] = Case(GEOMETRIES[name], PADDINGS["bipolar-zero"], "synthetic", True, True, "float32", lanes)
    _check(cpu, cases)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_sweep(cpu: str, seed: int) -> None:
    """Random geometries, 1 to 5000 pixels, batches of 1 to 17, with random trees."""
    rng = np.random.default_rng(seed)
    paddings = list(PADDINGS.values())
    cases: dict[str, Case] = {}
    while len(cases) < 12:
        geometry = _random_geometry(rng)
        if min(geometry.out_height, geometry.out_width) > 0 and geometry.out_height * geometry.out_width <= 5000:
            padding = paddings[int(rng.integers(len(paddings)))]
            tree = TREES[int(rng.integers(len(TREES)))]
            is_float = bool(rng.random() < 0.5)
            cases[f"{geometry} {tree}"] = Case(
                geometry, padding, tree, is_float, is_float, "float32" if is_float else "int32"
            )
    _check(cpu, cases)


def _random_geometry(rng: np.random.Generator) -> ConvGeometry:
    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    groups = pick(1, 3)
    size = int(rng.choice([4, 12, 30, 70]))
    return ConvGeometry(
        batch=pick(1, 17) if size <= 12 else 1,
        in_channels=groups * pick(1, 140 if size < 70 else 20),
        height=pick(1, size),
        width=pick(1, size),
        out_channels=groups * pick(1, 10),
        kernel=(pick(1, 7), pick(1, 7)),
        strides=(pick(1, 3), pick(1, 3)),
        pads=(pick(0, 3), pick(0, 3), pick(0, 3), pick(0, 3)),
        dilations=(pick(1, 2), pick(1, 2)),
        groups=groups,
    )


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_same_as_the_popcount_kernel(cpu: str) -> None:
    """The same bits through both kernels of a layer with scale and bias."""
    isa = runnable_isa(cpu)
    case = Case(GEOMETRIES["everything"], PADDINGS["bipolar-zero"], "synthetic", True, True, "float32")
    layer = Layer(case, isa, 1)
    popcount = popcount_conv2d(
        case.geometry, alphabet="bipolar", zero_padded=True, has_scale=True, has_bias=True, isa=isa
    )
    kernels = CompiledKernels(cpu, {**layer.kernels, "popcount": popcount})
    planes = kernels.run("planes", [layer.bits], layer.layout.shape, "uint64")
    shape = layer.expected.shape
    bitsliced = kernels.run("count", [planes, *layer.arguments], shape, "float32")
    constants = popcount_conv2d_constants(case.geometry, layer.signs, alphabet="bipolar", zero_padded=True, isa=isa)
    expected = kernels.run("popcount", [layer.bits, *constants, *layer.arguments[-2:]], shape, "float32")
    np.testing.assert_array_equal(bitsliced, expected)


@pytest.mark.parametrize("cpu", ["znver4", "x86-64"])
def test_arguments_may_lie_anywhere(cpu: str) -> None:
    isa = runnable_isa(cpu)
    layer = Layer(Case(GEOMETRIES["batch-17"], PADDINGS["bipolar-zero"], "random", True, True, "float32"), isa, 0)
    kernels = CompiledKernels(cpu, layer.kernels)
    planes = misaligned(np.zeros(layer.layout.shape, np.uint64))
    kernels.run_in_place("planes", [misaligned(layer.bits)], planes)
    output = misaligned(np.zeros_like(layer.expected))
    kernels.run_in_place("count", [planes, *(misaligned(array) for array in layer.arguments)], output)
    np.testing.assert_array_equal(output, layer.expected)


def test_an_integer_result_takes_no_scale() -> None:
    isa = detect_isa(cpu_target("x86-64").tvm_target)
    with pytest.raises(ValueError, match="neither scale nor bias"):
        Layer(Case(GEOMETRIES["3x3"], PADDINGS["ternary"], "chain", has_scale=True), isa, 0)


def test_planes_in_another_order_are_refused() -> None:
    isa = detect_isa(cpu_target("znver4").tvm_target)
    geometry = GEOMETRIES["3x3"]
    layout = PlaneLayout(geometry, "unsigned", 8, "fields")
    vectors = np.zeros((32, 576), np.bool_)
    program = make_program(layout, [ChannelTree(vectors, [-1] * 32)])
    constants: tuple[Any, ...] = bitsliced_conv2d_constants(layout, vectors.reshape(32, 64, 3, 3), zero_padded=True)
    with pytest.raises(ValueError, match="make_layout"):
        bitsliced_conv2d(layout, program, constants, has_scale=False, has_bias=False, isa=isa)
