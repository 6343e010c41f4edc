"""Popcount convolutions bit for bit against the integer convolution of NumPy."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.schedules.border_classes import border_classes
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.pack import pack_conv_activations
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import OutDtype
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan, conv_bits_shape
from bnn_compiler.schedules.reference import (
    binarise,
    conv2d_reference,
    epilogue_reference,
    pack_conv_reference,
    values_of,
)
from bnn_compiler.worker_threads import use_threads
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, cpu_target, misaligned, runnable_isa
from tests.schedules.paddings import PADDINGS, Padding

GEOMETRIES = {
    "3x3": ConvGeometry(1, 64, 14, 14, 32, (3, 3), pads=(1, 1, 1, 1)),
    "one-pixel": ConvGeometry(1, 70, 1, 1, 9, (1, 1)),
    "pointwise": ConvGeometry(2, 100, 5, 9, 7, (1, 1)),
    "pointwise-strided": ConvGeometry(1, 64, 9, 9, 8, (1, 1), strides=(2, 2)),
    "pointwise-padded": ConvGeometry(1, 3, 4, 4, 5, (1, 1), pads=(1, 2, 0, 1)),
    "7-pixels": ConvGeometry(1, 65, 1, 9, 6, (1, 3)),
    "8-pixels": ConvGeometry(1, 64, 2, 4, 4, (1, 1)),
    "9-pixels": ConvGeometry(3, 129, 3, 3, 5, (3, 3), pads=(1, 1, 1, 1)),
    "41-pixels": ConvGeometry(1, 10, 1, 41, 4, (1, 5), pads=(0, 2, 0, 2)),
    "everything": ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2),
    "depthwise": ConvGeometry(1, 6, 8, 8, 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    "depthwise-multiplier": ConvGeometry(1, 5, 7, 7, 10, (3, 3), (2, 2), (1, 1, 1, 1), groups=5),
    "5x5": ConvGeometry(1, 33, 9, 10, 9, (5, 5), pads=(2, 2, 2, 2)),
    "7x7-stride-2": ConvGeometry(1, 3, 21, 20, 8, (7, 7), (2, 2), (3, 3, 3, 3)),
    "dilated": ConvGeometry(1, 64, 12, 12, 4, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 2)),
    "kernel-is-image": ConvGeometry(2, 64, 4, 4, 11, (4, 4)),
    "pads-wider-than-kernel": ConvGeometry(1, 8, 3, 3, 4, (2, 2), pads=(3, 2, 4, 3)),
    "columns": ConvGeometry(1, 40, 60, 1, 4, (3, 1), pads=(1, 0, 1, 0)),
    # Several bands of columns, the last one overlapping: 72 words, 200 KiB per 19 rows.
    "bands": ConvGeometry(1, 512, 19, 19, 5, (3, 3), pads=(1, 1, 1, 1)),
    # A single row exceeds the band.
    "deep-row": ConvGeometry(1, 640, 3, 40, 4, (7, 7), pads=(3, 3, 3, 3)),
    # Maps that do not fill vectors: output channels are in the lanes, on AVX-512 at least (see SMALL_MAPS).
    "2x2": ConvGeometry(3, 130, 2, 2, 37, (3, 3), pads=(1, 1, 1, 1)),
    "3x3-in-place": ConvGeometry(2, 640, 3, 3, 40, (1, 1)),
    "3x3-groups": ConvGeometry(2, 256, 3, 3, 32, (3, 3), pads=(1, 1, 1, 1), groups=2),
    "3-pixels": ConvGeometry(1, 300, 1, 5, 19, (1, 3)),
    "a-pixel": ConvGeometry(2, 130, 3, 3, 75, (3, 3)),
    "7x7": ConvGeometry(1, 400, 7, 7, 72, (3, 3), pads=(1, 1, 1, 1)),
}
SMALL_MAPS = ["one-pixel", "2x2", "3x3-in-place", "3x3-groups", "3-pixels", "a-pixel", "7x7"]


@dataclass(frozen=True)
class Case:
    geometry: ConvGeometry
    padding: Padding
    has_scale: bool
    has_bias: bool
    out_dtype: OutDtype


def _kernel(case: Case, isa: Isa) -> Any:
    return popcount_conv2d(
        case.geometry,
        alphabet=case.padding.alphabet,
        zero_padded=case.padding.zero_padded,
        has_scale=case.has_scale,
        has_bias=case.has_bias,
        out_dtype=case.out_dtype,
        isa=isa,
    )


def _inputs_and_output(case: Case, isa: Isa, seed: int, x: Array | None = None) -> tuple[list[Array], Array]:
    """Random activations and weights: the kernel's arguments, and what it must give."""
    rng = np.random.default_rng(seed)
    geometry, padding = case.geometry, case.padding
    rule = PackRule("gt", alphabet=padding.alphabet)
    if x is None:
        x = rng.choice([-1.5, 0.0, 2.0], (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        x = x.astype(np.float32)
    signs = rng.random((geometry.out_channels, geometry.group_in_channels, *geometry.kernel)) < 0.5
    bits = pack_conv_reference(geometry, x, rule, (), pad_code=padding.pad_code, fused=True)
    constants = popcount_conv2d_constants(
        geometry, signs, alphabet=padding.alphabet, zero_padded=padding.zero_padded, isa=isa
    )
    scale = rng.standard_normal(geometry.out_channels).astype(np.float32) if case.has_scale else None
    bias = rng.standard_normal(geometry.out_channels).astype(np.float32) if case.has_bias else None
    values = values_of(binarise(x, rule, (), fused=True), padding.alphabet)
    z = conv2d_reference(geometry, values, signs, padding.pad_value)
    inputs = [bits, *constants, *(array for array in (scale, bias) if array is not None)]
    if case.out_dtype == "int32":
        return inputs, z
    column = (1, -1, 1, 1)
    y = epilogue_reference(
        z,
        None if scale is None else scale.reshape(column),
        None if bias is None else bias.reshape(column),
        fused=isa.fused_multiply_add,
    )
    return inputs, y


def _check(cpu: str, cases: dict[str, Case]) -> None:
    isa = runnable_isa(cpu)
    kernels = CompiledKernels(cpu, {f"k{i}": _kernel(case, isa) for i, case in enumerate(cases.values())})
    for i, (name, case) in enumerate(cases.items()):
        inputs, expected = _inputs_and_output(case, isa, i)
        output = kernels.run(f"k{i}", inputs, expected.shape, case.out_dtype)
        np.testing.assert_array_equal(output, expected, err_msg=name)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_shapes(cpu: str, padding: str) -> None:
    """Every geometry under two of the six paddings, each padding with about seven geometries."""
    index = list(PADDINGS).index(padding)
    names = [name for i, name in enumerate(GEOMETRIES) if i % 3 == index % 3]
    _check(cpu, {name: Case(GEOMETRIES[name], PADDINGS[padding], False, False, "int32") for name in names})


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_epilogues(cpu: str) -> None:
    names = ["3x3", "9-pixels", "7-pixels", "everything", "2x2", "3x3-groups"]
    flags = itertools.product(names, PADDINGS.values(), [(False, False), (True, False), (False, True), (True, True)])
    cases = [Case(GEOMETRIES[name], padding, *flag, "float32") for name, padding, flag in flags]
    _check(cpu, {str(i): case for i, case in enumerate(cases[::5])})


def test_small_maps_have_channels_in_their_lanes() -> None:
    """And others have pixels; where these fill the vectors of a narrower machine, so has this one."""

    def chosen(cpu: str) -> list[str]:
        isa = detect_isa(cpu_target(cpu).tvm_target)
        plans = {name: PopcountPlan(geometry, "bipolar", True, False, isa) for name, geometry in GEOMETRIES.items()}
        return [name for name, plan in plans.items() if plan.channels_in_lanes]

    assert set(SMALL_MAPS) <= set(chosen("znver4"))
    assert not {"3x3", "pointwise", "everything", "41-pixels", "bands"} & set(chosen("znver4"))
    assert {"3x3-groups", "a-pixel"} <= set(chosen("haswell")) <= set(chosen("znver4")) - {"2x2", "7x7"}


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_channels_in_the_lanes(threads: int) -> None:
    """A map of 7x7 pixels, and one pixel, whose tile would be wider than what a thread takes."""
    isa = runnable_isa("znver4")
    geometries = [
        ConvGeometry(1, 512, 7, 7, 96, (3, 3), pads=(1, 1, 1, 1)),
        ConvGeometry(1, 1024, 6, 6, 512, (6, 6)),
    ]
    cases = {str(geometry): Case(geometry, PADDINGS["bipolar-zero"], True, True, "float32") for geometry in geometries}
    for geometry in geometries:
        plan = PopcountPlan(geometry, "bipolar", True, False, isa)
        assert plan.channels_in_lanes and plan.shared == "channels"
    with ThreadPoolExecutor(1) as caller:  # the number of threads is the calling thread's

        def check() -> None:
            use_threads(threads)
            _check("znver4", cases)

        caller.submit(check).result()


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_sweep(cpu: str, padding: str) -> None:
    """Every geometry and padding, and forty random geometries more."""
    cases = {name: Case(geometry, PADDINGS[padding], True, True, "float32") for name, geometry in GEOMETRIES.items()}
    rng = np.random.default_rng(list(PADDINGS).index(padding))
    while len(cases) < len(GEOMETRIES) + 40:
        geometry = _random_geometry(rng)
        if geometry.out_height > 0 and geometry.out_width > 0:
            cases[f"{geometry}"] = Case(geometry, PADDINGS[padding], True, True, "float32")
    _check(cpu, cases)


def _random_geometry(rng: np.random.Generator) -> ConvGeometry:
    def pick(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    groups = pick(1, 3)
    return ConvGeometry(
        batch=pick(1, 2),
        in_channels=groups * pick(1, 140),
        height=pick(1, 20),
        width=pick(1, 20),
        out_channels=groups * pick(1, 10),
        kernel=(pick(1, 5), pick(1, 5)),
        strides=(pick(1, 3), pick(1, 3)),
        pads=(pick(0, 3), pick(0, 3), pick(0, 3), pick(0, 3)),
        dilations=(pick(1, 2), pick(1, 2)),
        groups=groups,
    )


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_no_accumulator_overflows(cpu: str) -> None:
    """All weights disagree with all activations, just past the reach of byte counters and far past it."""
    isa = runnable_isa(cpu)
    depths = [31 * 64, 32 * 64, 62 * 64 + 1, 76_800, 4_200 * 64]
    cases = {f"k{i}": ConvGeometry(1, depth, 1, 9, 5, (1, 1)) for i, depth in enumerate(depths)}
    kernels = CompiledKernels(
        cpu,
        {
            name: _kernel(Case(geometry, PADDINGS["bipolar-zero"], False, False, "int32"), isa)
            for name, geometry in cases.items()
        },
    )
    for name, geometry in cases.items():
        signs = np.zeros((5, geometry.in_channels, 1, 1), np.bool_)
        signs[3] = True
        x = np.ones((1, geometry.in_channels, 1, 9), np.float32)
        bits = pack_conv_reference(geometry, x, PackRule("gt"), (), pad_code=0, fused=True)
        weights = popcount_conv2d_constants(geometry, signs, alphabet="bipolar", zero_padded=True, isa=isa)
        z = kernels.run(name, [bits, *weights], (1, 5, 1, 9), "int32")
        expected = np.full((1, 5, 1, 9), -geometry.in_channels)
        expected[:, 3] = geometry.in_channels
        np.testing.assert_array_equal(z, expected)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_arguments_may_lie_anywhere(cpu: str) -> None:
    isa = runnable_isa(cpu)
    for name in ("3x3", "pointwise"):
        case = Case(GEOMETRIES[name], PADDINGS["bipolar-zero"], True, True, "float32")
        inputs, expected = _inputs_and_output(case, isa, 0)
        output = misaligned(np.zeros_like(expected))
        kernels = CompiledKernels(cpu, {"conv": _kernel(case, isa)})
        kernels.run_in_place("conv", [misaligned(array) for array in inputs], output)
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_from_relax(cpu: str) -> None:
    """Pack and convolve through ``call_tir``, as the passes do; neither function is fused into anything."""
    isa = runnable_isa(cpu)
    case = Case(GEOMETRIES["3x3"], PADDINGS["bipolar-zero"], True, True, "float32")
    x = np.random.default_rng(0).standard_normal((1, 64, 14, 14)).astype(np.float32)
    inputs, expected = _inputs_and_output(case, isa, 0, x)
    block_builder = relax.BlockBuilder()
    parameter = relax.Var("x", relax.TensorType(x.shape, "float32"))
    with block_builder.function("main", [parameter]):
        with block_builder.dataflow():
            pack = block_builder.add_func(pack_conv_activations(case.geometry, isa=isa, predicate="gt"), "pack")
            conv = block_builder.add_func(_kernel(case, isa), "conv")
            bits_type = relax.TensorType(conv_bits_shape(case.geometry, "bipolar"), "uint64")
            bits = block_builder.emit(relax.call_tir(pack, [parameter], out_ty=bits_type))
            constants = [relax.const(array) for array in inputs[1:]]
            conv_type = relax.TensorType(expected.shape, "float32")
            y = block_builder.emit_output(relax.call_tir(conv, [bits, *constants], out_ty=conv_type))
        block_builder.emit_func_output(y)
    module = block_builder.get()
    attributes = module["conv"].attrs
    assert (attributes["op_pattern"], attributes["bnnc.kernel"]) == (8, f"popcount_conv2d_3x3_bipolar_{isa.name}")
    machine = relax.VirtualMachine(relax.build(module, cpu_target(cpu).tvm_target), tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), expected)


def test_border_classes_of_a_padded_3x3() -> None:
    classes, outside = border_classes(ConvGeometry(1, 1, 4, 5, 1, (3, 3), pads=(1, 1, 1, 1)))
    assert len(outside) == 9
    interior = classes.reshape(4, 5)[1:-1, 1:-1]
    assert np.unique(interior).size == 1 and not outside[interior[0, 0]].any()
    np.testing.assert_array_equal(
        outside[classes.reshape(4, 5)[0, -1]], [[True, True, True], [False, False, True], [False, False, True]]
    )


def test_an_integer_result_takes_no_scale() -> None:
    isa = detect_isa(cpu_target("x86-64").tvm_target)
    with pytest.raises(ValueError, match="neither scale nor bias"):
        _kernel(Case(GEOMETRIES["3x3"], PADDINGS["ternary"], True, False, "int32"), isa)
