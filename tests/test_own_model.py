"""The final comparison: with the user's own file, and what is said where results differ from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler.artifact import read_manifest
from bnn_compiler.cli.main import run
from bnn_compiler.cli.verification_sentences import describe_disagreement, describe_verification
from bnn_compiler.report import Report, VerificationReport, from_json
from bnn_compiler.verification.reference import sample_feeds
from tests.frontend.onnx_text import Array, parse, run_onnx

RNG = np.random.default_rng(5)


def with_weights(text: str, **weights: Array) -> onnx.ModelProto:
    model = parse(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def signs(*shape: int) -> Array:
    return RNG.choice(np.asarray([-1, 1], np.float32), shape)


def difference_of_relus() -> onnx.ModelProto:
    """A quarter of the differences is zero in ordinary inputs."""
    return with_weights(
        """g (float[1,8,6,6] x, float[1,8,6,6] z) => (float[1,4,6,6] y) {
        q = Relu(x) r = Relu(z) p = Sub(q, r) s = Sign(p) y = Conv<pads = [1, 1, 1, 1]>(s, w) }""",
        w=signs(4, 8, 3, 3),
    )


def sign_of_input() -> onnx.ModelProto:
    return with_weights("g (float[2,32] x) => (float[2,8] y) { s = Sign(x) y = MatMul(s, w) }", w=signs(32, 8))


def compiled_report(model: onnx.ModelProto, **options: Any) -> Report:
    return bnn_compiler.compile_model(model, **options).report


def verification_of(report: Report) -> VerificationReport:
    verification = report["verification"]
    assert verification is not None
    return verification


def test_sign_of_zero_as_plus_one_is_a_difference() -> None:
    report = compiled_report(difference_of_relus(), sign_zero="plus")
    verification = verification_of(report)
    assert verification["passed"] and verification["compared_with"] == "sign_zero_plus"
    own = verification["own_model"]
    assert own is not None and own["loaded"] and not own["agrees"]
    assert own["by_kind"][0]["kind"] == "ordinary" and own["by_kind"][0]["outputs"][0]["differing"] > 0.2
    assert [zero["tensor"] for zero in verification["sign_zeros"]] == ["p"]
    sentence = describe_verification(report)
    assert sentence.startswith("differs from ONNX Runtime in ") and "% of y, up to " in sentence
    assert "where Sign(0) is taken as +1" in sentence


def test_the_stated_share_is_measured() -> None:
    """By hand, in a session with default options, on the same ordinary inputs; the network's results are integers."""
    model = difference_of_relus()
    compiled = bnn_compiler.compile_model(model, sign_zero="plus")
    errors = []
    for index in range(4):
        feeds = sample_feeds(compiled.inputs, 0, index)
        errors.append(np.abs(run_onnx(model, feeds)[0] - compiled.run(feeds)["y"]))
    own = verification_of(compiled.report)["own_model"]
    assert own is not None
    (output,) = own["by_kind"][0]["outputs"]
    assert output["differing"] == pytest.approx(float((np.stack(errors) > 0).mean()))
    assert output["max_abs_error"] == np.max(errors)


def test_all_algorithms_have_one_rule_for_zero_and_say_so() -> None:
    reports = [compiled_report(difference_of_relus(), sign_zero="plus", algorithm=name) for name in ("auto", "float")]
    own = [verification_of(report)["own_model"] for report in reports]
    assert [entry is not None and entry["agrees"] for entry in own] == [False, False]
    assert describe_verification(reports[0]).startswith("differs from ONNX Runtime in ")
    assert describe_verification(reports[1]).startswith("differs from ONNX Runtime in ")


def test_zeros_of_the_input_itself_are_named() -> None:
    report = compiled_report(sign_of_input(), sign_zero="plus")
    verification = verification_of(report)
    own = verification["own_model"]
    assert own is not None
    differing = {entry["kind"]: entry["outputs"][0]["differing"] > 0 for entry in own["by_kind"]}
    assert differing == {"ordinary": False, "integers": False, "half zeros": True, "zeros": True}
    assert verification["sign_zeros"] == [], "the caller's own zeros are no decision of the network"
    assert describe_verification(report).startswith("differs from ONNX Runtime on half-zero inputs in ")


def test_exact_signs_agree() -> None:
    report = compiled_report(difference_of_relus(), sign_zero="exact")
    own = verification_of(report)["own_model"]
    assert own is not None and own["agrees"] and verification_of(report)["compared_with"] == "model"
    assert "layers alone (1 bit for bit)" in describe_verification(report)
    assert describe_disagreement(report) is None


def test_a_file_that_onnx_runtime_cannot_load_is_named() -> None:
    model = with_weights("g (float[2,32] x) => (float[2,8] y) { s = Identity(x) y = MatMul(s, w) }", w=signs(32, 8))
    node = model.graph.node[0]
    node.op_type, node.domain = "BipolarQuant", "qonnx.custom_op.general"
    node.input.append("one")
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(1, np.float32), "one"))
    model.opset_import.append(helper.make_opsetid("qonnx.custom_op.general", 1))
    report = compiled_report(model)
    verification = verification_of(report)
    assert verification["compared_with"] == "standard_form"
    sentence = describe_verification(report)
    assert sentence.startswith("agrees with the model's standard-ONNX form in ONNX Runtime (the file itself was not")
    assert "BipolarQuant" in sentence


def test_exact_sums_say_how_far_the_model_is() -> None:
    """Sums of ±0.1 that cancel are noise of either sign in ONNX Runtime; here they are exact."""
    model = with_weights(
        """g (float[1,4,12,12] x) => (float[1,8,8,8] y) <float zero = {0}, float one = {1}, float minus = {-1}> {
        a = Sign(x) c = Conv(a, v) l = Less(c, zero) s = Where(l, minus, one) y = Conv(s, w) }""",
        v=signs(16, 4, 3, 3) * np.float32(0.1),
        w=signs(8, 16, 3, 3) * np.float32(0.3),
    )
    report = compiled_report(model, sign_zero="plus")
    verification = verification_of(report)
    assert verification["exact_sums"] and verification["compared_with"] == "exact_sums"
    sentence = describe_verification(report)
    assert sentence.startswith("differs from ONNX Runtime in ") and "where sums of ±α cancel" in sentence


@pytest.mark.parametrize("target", ["llvm -mcpu=cortex-a72"])
def test_another_target_is_verified_here(target: str, tmp_path: Path) -> None:
    compiled = bnn_compiler.compile_model(sign_of_input(), target=target)
    verification = verification_of(compiled.report)
    assert verification["passed"] and verification["target"] != compiled.report["target"]
    sentence = describe_verification(compiled.report)
    assert sentence.startswith("the network, built for this machine, ") and sentence.endswith("itself was not run")
    compiled.export(tmp_path / "x.so")
    assert read_manifest(tmp_path / "x.so")["report"]["verification"] == verification
    assert bnn_compiler.compile_model(sign_of_input(), target=target, verify=False).report["verification"] is None


Bnnc = Callable[..., str]


def test_inspect_and_run_speak_of_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx.save(difference_of_relus(), tmp_path / "m.onnx")
    zeros = np.zeros((1, 8, 6, 6), np.float32)
    np.savez(tmp_path / "x.npz", x=zeros, z=zeros)
    library = str(tmp_path / "m.so")

    def said(*words: str) -> str:
        capfd.readouterr()
        assert run(list(words)) == 0
        return capfd.readouterr().out

    assert "differs from ONNX Runtime in" in said(
        "compile", str(tmp_path / "m.onnx"), "-o", library, "--sign-zero", "plus"
    )
    assert "when it was compiled: differs from ONNX Runtime in" in said("inspect", library)
    assert "the network differed from ONNX Runtime in" in said("run", library, "--input", str(tmp_path / "x.npz"))
    said("compile", str(tmp_path / "m.onnx"), "-o", library, "--no-verify")
    assert "when it was compiled: not verified" in said("inspect", library)
    assert from_json(read_manifest(library)["report"])["verification"] is None
