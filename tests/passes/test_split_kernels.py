"""Kernels as bodies and entries: one body for equal code, no matter how long the tables are; checks stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from tvm import IRModule, relax, tirx

from bnn_compiler.build import build_library, build_passes
from bnn_compiler.passes.run_in_one_call import BY_KERNEL
from bnn_compiler.passes.split_kernels import SplitKernels
from bnn_compiler.passes.straight_line import BODY_ATTR
from bnn_compiler.runtime import load
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import ALL_MINUS, ChannelTree, make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.kernel_builder import Argument, build_kernel, serial, store, workspace
from bnn_compiler.schedules.kernel_builder import load as load_element
from bnn_compiler.target import parse_target

Array = npt.NDArray[Any]

LANES = 16


def sum_kernel(rows: int, *, scratch: int = 512, step: int = LANES) -> tirx.PrimFunc:
    """(table float32 [rows, 16], count int32 [1], y float32 [16]): y = the sum of ``count`` rows ``step`` apart."""

    def emit(buffers: Any) -> None:
        total = workspace(scratch, "float32")
        for lane in range(LANES):
            store(total, lane, tirx.const(0.0, "float32"))
        with serial(load_element(buffers["count"], 0)) as row, serial(LANES) as lane:
            store(total, lane, load_element(total, lane) + load_element(buffers["table"], row * step + lane))
        with serial(LANES) as lane:
            store(buffers["y"], lane, load_element(total, lane))

    arguments = [Argument("table", (rows, LANES), "float32"), Argument("count", (1,), "int32")]
    return build_kernel("sum_rows", "sum_rows", [*arguments, Argument("y", (LANES,), "float32")], emit)


def summed(tables: list[Array], kernels: list[tirx.PrimFunc]) -> IRModule:
    """x -> x + the sum of all rows of every table, each by its kernel."""
    builder = relax.BlockBuilder()
    of_rows = relax.TensorType((LANES,), "float32")
    x = relax.Var("x", of_rows)
    with builder.function("main", [x]):
        with builder.dataflow():
            value: relax.Expr = x
            for table, kernel in zip(tables, kernels, strict=True):
                arguments = [relax.const(table), relax.const(np.array([len(table)], np.int32))]
                total = builder.emit(relax.call_tir(builder.add_func(kernel, "sum_rows"), arguments, of_rows))
                value = builder.emit(relax.op.add(value, total))
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.get()


def bodies(module: IRModule) -> dict[str, str]:
    """The body that each kernel of our own calls."""
    with parse_target("native").tvm_target:
        built = build_passes()(module)
    names = {str(variable.name_hint) for variable in built.get_global_vars()}
    found = {
        str(variable.name_hint): str(function.attrs[BODY_ATTR])
        for variable, function in built.functions_items()
        if isinstance(function, tirx.PrimFunc) and BODY_ATTR in function.attrs and "bnnc.kernel" in function.attrs
    }
    assert set(found.values()) <= names
    return found


def tables(*lengths: int) -> list[Array]:
    """Small whole numbers, whose sums are exact."""
    generator = np.random.default_rng(0)
    return [generator.integers(-9, 9, (length, LANES)).astype(np.float32) for length in lengths]


def test_tables_of_other_lengths_share_a_body(tmp_path: Path) -> None:
    """In both orders: the body is declared with the lengths of the first."""
    for lengths in ((3, 40), (40, 3)):
        chosen = tables(*lengths)
        module = summed(chosen, [sum_kernel(length) for length in lengths])
        assert bodies(module) == {"sum_rows": "bnnc_sum_rows", "sum_rows1": "bnnc_sum_rows"}
        build_library(module, parse_target("native"), {}, tmp_path / "model.so")
        model = load(tmp_path / "model.so")
        x = np.arange(LANES, dtype=np.float32)
        expected = x + sum(table.sum(axis=0) for table in chosen)
        np.testing.assert_array_equal(model.run(x)["output_0"], expected)
        np.testing.assert_array_equal(model.run_function(BY_KERNEL, [x])[0], expected)


@pytest.mark.parametrize("other", [{"scratch": 1024}, {"step": 2 * LANES}])
def test_other_code_has_its_own_body(other: dict[str, int]) -> None:
    module = summed(tables(3, 4), [sum_kernel(3), sum_kernel(4, **other)])
    assert bodies(module) == {"sum_rows": "bnnc_sum_rows", "sum_rows1": "bnnc_sum_rows1"}


def test_kernels_of_float_fusion_share_nothing_by_their_names() -> None:
    """Same kind of kernel, same parameters but for a first extent, loops of other lengths."""
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    y = relax.Var("y", relax.TensorType((6, 8), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, y]):
        with builder.dataflow():
            result = builder.emit_output(
                relax.Tuple([builder.emit_output(relax.op.sin(x)), builder.emit_output(relax.op.sin(y))])
            )
        builder.emit_func_output(result)
    with parse_target("native").tvm_target:
        built = build_passes()(builder.get())
    symbols = [
        str(function.attrs[BODY_ATTR])
        for _, function in built.functions_items()
        if isinstance(function, tirx.PrimFunc) and BODY_ATTR in function.attrs
    ]
    assert len(symbols) == len(set(symbols)) == 2


def test_applies_once_and_changes_only_a_copy() -> None:
    module = tvm.transform.Sequential(list(build_passes().passes)[:7])(summed(tables(3), [sum_kernel(3)]))
    text = module.script()
    once = tvm.transform.Sequential([SplitKernels()])(module)
    assert module.script() == text
    assert once.script() != text
    assert tvm.transform.Sequential([SplitKernels()])(once).script() == once.script()


def test_entries_check_a_callers_memory_alone() -> None:
    """Of the first sum, whose result another kernel reads, nothing; of x -> relu(x), what is read and written."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(sum_kernel(3), "sum_rows")
    of_rows = relax.TensorType((LANES,), "float32")
    x = relax.Var("x", of_rows)
    with builder.function("main", [x]):
        with builder.dataflow():
            arguments = [relax.const(tables(3)[0]), relax.const(np.array([3], np.int32))]
            total = builder.emit(relax.call_tir(kernel, arguments, of_rows))
            result = builder.emit_output(relax.op.add(x, relax.op.nn.relu(total)))
        builder.emit_func_output(result)
    with parse_target("native").tvm_target:
        built = build_passes()(builder.get())
    checked = {
        str(variable.name_hint): [bool(tirx.buffer.is_buffer_var(parameter)) for parameter in function.params]
        for variable, function in built.functions_items()
        if isinstance(function, tirx.PrimFunc) and BODY_ATTR in function.attrs
    }
    assert checked == {"sum_rows": [False] * 3, "relu": [False] * 2, "add": [True, False, True]}


def test_bit_sliced_layers_of_one_geometry_have_the_same_code() -> None:
    """Whatever their weights and trees: with synthetic nodes, and with each channel counted from a root."""
    isa = detect_isa(parse_target("native").tvm_target)
    geometry = ConvGeometry(1, 64, 8, 8, 12, (3, 3))
    layout = make_layout(geometry, "bipolar", isa)
    generator = np.random.default_rng(0)
    builder = relax.BlockBuilder()
    planes = relax.Var("planes", relax.TensorType(layout.shape, "uint64"))
    output = relax.TensorType((1, geometry.out_channels, geometry.out_height, geometry.out_width), "float32")
    with builder.function("main", [planes]):
        with builder.dataflow():
            results = []
            for synthetic in (0, 5):
                nodes = geometry.out_channels + synthetic
                vectors = generator.random((nodes, layout.weights)) < 0.5
                parents = [nodes - 1 if synthetic and node < nodes - 1 else ALL_MINUS for node in range(nodes)]
                program = make_program(layout, [ChannelTree(vectors, parents)])
                signs = vectors[: geometry.out_channels].reshape(geometry.out_channels, 64, 3, 3)
                constants = bitsliced_conv2d_constants(layout, signs, zero_padded=False)
                kernel = bitsliced_conv2d(layout, program, constants, has_scale=False, has_bias=False, isa=isa)
                arguments = [planes, *map(relax.const, (*program.tables, *constants))]
                function = builder.add_func(kernel, "count")
                results.append(builder.emit_output(relax.call_tir(function, arguments, output)))
            whole = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(whole)
    assert bodies(builder.get()) == {"count": "bnnc_count", "count1": "bnnc_count"}
