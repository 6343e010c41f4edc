"""How measurements become a profile, and what the documents say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnn_compiler
from bnn_compiler.bench import Timing, bench_layers, bench_report
from bnn_compiler.frontend import import_onnx
from bnn_compiler.profiling.kernel_timing import measure_hook_cost, time_kernels
from bnn_compiler.profiling.machine_peaks import measure_peaks, memory_levels
from bnn_compiler.profiling.onnxruntime_nodes import match_nodes, time_nodes
from bnn_compiler.profiling.profile import group_layers, match_table, profile_network
from bnn_compiler.verification.reference import sample_feeds
from tests.frontend.onnx_text import parse
from tests.passes.test_plan_layouts import larq_like

from .made_up import CALLS, HOST, HOSTILE, TABLE, profile

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"


def test_shares_add_up() -> None:
    made = profile()
    assert made["kernels_us"] == pytest.approx(38)
    assert made["overhead_us"] == pytest.approx(7)  # of the fastest run
    assert sum(made["shares"].values()) == pytest.approx(1)  # type: ignore[arg-type]
    assert made["shares"]["binary"] == pytest.approx(10 / 45)
    assert made["shares"]["glue"] == pytest.approx((2 + 5 + 1) / 45)
    whole = 1 - made["shares"]["overhead"]
    assert sum(layer["share"] for layer in made["layers"]) == pytest.approx(whole)
    assert sum(kernel["share"] for kernel in made["kernels"]) == pytest.approx(whole)


def test_layers_have_all_their_kernels() -> None:
    stem, binary, pool, copy = profile()["layers"]
    assert (binary["name"], binary["kind"], binary["kernels"], binary["op"]) == (HOSTILE, "binary", 2, "Conv")
    assert binary["us"] == pytest.approx(12) and binary["macs"] == 8_000_000 and binary["bytes"] == 1032 + 4600
    assert (stem["onnxruntime_us"], stem["speedup"]) == (32, 1.6)  # its Relu, too
    assert (pool["op"], pool["name"]) == ("", f"{HOST} + 1")
    assert (copy["name"], copy["onnxruntime_us"], copy["speedup"]) == ("copy", 0, None)


def test_what_is_too_short_is_not_compared() -> None:
    short = {**profile()["kernels"][3], "us_min": 0.05}
    [layer] = group_layers([short], {})  # type: ignore[list-item]
    assert layer["onnxruntime_us"] == 4 and layer["speedup"] is None


def test_rates_are_of_the_fastest_round() -> None:
    popcount = profile()["kernels"][2]
    assert (popcount["bytes_read"], popcount["bytes_written"]) == (600, 4000)  # it has two results
    assert popcount["gmacs_per_second"] == pytest.approx(800)
    assert popcount["gbytes_per_second"] == pytest.approx(0.46)
    assert (popcount["us_min"], popcount["us_median"]) == (10, 11)


def test_what_onnxruntime_ran_is_all_accounted_for() -> None:
    made = profile()
    theirs = made["onnxruntime"]
    assert theirs is not None
    matched = sum(kernel["onnxruntime_us"] or 0.0 for kernel in made["kernels"])
    assert matched + theirs["unmatched_us"] == pytest.approx(theirs["nodes_us"])
    assert profile(compared=False)["onnxruntime"] is None
    assert {kernel["onnxruntime_us"] for kernel in profile(compared=False)["kernels"]} == {None}


def test_calls_and_table_may_differ() -> None:
    found = match_table(CALLS, TABLE)
    assert [entry["kernel"] for entry in found] == [call.kernel for call in CALLS]
    assert found[2] is TABLE[3]
    assert found[4] == {"kernel": "copy", "nodes": [], "layer": "", "kind": "glue", "results": 1}
    # A library of an older version has no table.
    assert {entry["kind"] for entry in match_table(CALLS, [])} == {"glue"}


def test_docs_describe_every_field() -> None:
    text = DOCS.read_text(encoding="utf-8").split("## Profile")[1]
    made: Any = profile()
    parts = (made, made["layers"][0], made["kernels"][0], made["shares"], made["onnxruntime"], made["peaks"])
    fields = {field for part in (*parts, made["peaks"]["bandwidth"][0]) for field in part}
    assert {field for field in fields if f"`{field}`" not in text} == set()


def test_docs_describe_every_field_of_bench() -> None:
    text = DOCS.read_text(encoding="utf-8").split("## Bench")[1].split("\n## ")[0]
    timing = Timing("t", 1, (1.0,), (1.0,))
    made = bench_report("m", 1, 3, {}, timing, [timing], profile())
    assert {field for field in (*made, *made["network"]) if f"`{field}`" not in text} == set()


def test_renamed_and_fused_nodes_are_led_back() -> None:
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y)
        <float[4,4,1,1] v = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float[4] p = {1, 2, 3, 4}> {
        [one] a = Conv(x, v) [act] b = Relu(a) [two] c = Conv(b, v) [norm] d = BatchNormalization(c, p, p, p, p)
        [sum] e = Add(d, x) [last] y = Relu(e) }"""
    ran = {
        "b_nchwc": "Conv", "ReorderInput_token_3": "ReorderInput", "fused two": "Conv", "d_bn_nchwc": "Conv",
        "last": "Relu", "who knows": "Gelu",
    }  # fmt: skip
    expected = {"b_nchwc": "one", "fused two": "two", "d_bn_nchwc": "norm", "last": "last"}
    assert match_nodes(ran, parse(text)) == expected


def test_kernels_of_a_network() -> None:
    text = """g (float[1,8,16,16] x) => (float[1,8,1,1] y) {
        [pool] p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) [mean] y = GlobalAveragePool(p) }"""
    compiled = bnn_compiler.compile_model(parse(text), verify=False)
    feeds = sample_feeds(compiled.inputs, 0, 0)
    expected = compiled.run(feeds)
    times = time_kernels(compiled.model, feeds, rounds=3)
    assert len(times.runs) == len(times.calls[0].seconds) >= 3
    table = compiled.model.manifest["kernels"]
    assert [entry["nodes"] for entry in match_table(times.calls, table)] == [["pool"], ["mean"]]
    pool, mean = times.calls
    assert pool.argument_bytes == (4 * 8 * 16 * 16, 4 * 8 * 8 * 8)
    assert mean.argument_bytes[-1] == 4 * 8
    assert all(0 <= min(call.seconds) < 1 for call in times.calls)
    # The hook is gone from other runs, and has changed nothing.
    np.testing.assert_array_equal(compiled.run(feeds)["y"], expected["y"])


def test_a_network_s_profile(digits: Path) -> None:
    compiled = bnn_compiler.compile_model(digits, algorithm="popcount", verify=False)
    made = profile_network(compiled.model, compiled.report["layers"], import_onnx(digits).onnx_model, rounds=3)
    assert sum(made["shares"].values()) == pytest.approx(1)  # type: ignore[arg-type]
    assert [layer["name"] for layer in made["layers"] if layer["op"]] == [
        layer["name"] for layer in compiled.report["layers"]
    ]
    assert all(layer["onnxruntime_us"] for layer in made["layers"] if layer["op"])
    assert made["peaks"] is None


def test_onnxruntime_s_profile_is_not_left_behind(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    imported = import_onnx(digits)
    times = time_nodes(imported.onnx_model, sample_feeds(imported.inputs, 0, 0), runs=3)
    assert set(times.seconds) <= {node.name for node in imported.onnx_model.graph.node}
    assert "conv1/Conv" in times.seconds
    assert list(tmp_path.iterdir()) == []


def test_the_hook_costs_more_for_more_arguments() -> None:
    cost = measure_hook_cost()
    assert 0 < cost.of(2) <= cost.of(8) < 1e-3


def test_peaks_are_ordered_as_memories_are() -> None:
    peaks = measure_peaks()
    assert peaks["popcount_gmacs_per_second"] > peaks["float_gmacs_per_second"] > 0
    assert peaks["bandwidth"][-1]["level"] == "memory"
    assert all(level["gbytes_per_second"] > 0 for level in peaks["bandwidth"])


def test_memory_levels_without_the_kernel_s_help(tmp_path: Path) -> None:
    assert list(memory_levels(tmp_path)) == ["memory"]
    for index, kind, level, size in ((0, "Data", 1, "32K"), (1, "Instruction", 1, "64K"), (2, "Unified", 2, "1024K")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", str(level)), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert memory_levels(tmp_path) == {"L1": 16 << 10, "L2": 512 << 10, "memory": 4 << 20}


def test_layers_that_take_other_layouts_are_timed_too() -> None:
    model = larq_like()
    compiled = bnn_compiler.compile_model(model, verify=False)
    assert compiled.report["layers"][1]["input_axes"] == [0, 3, 1, 2]
    imported = import_onnx(model)
    timings = bench_layers(compiled, imported.onnx_model, imported.inputs, compiled.report["layers"], rounds=3)
    assert [timing.name for timing in timings] == ["first", "second"]
