"""Verification notices a wrong compiler: one flipped weight bit, one wrong threshold, one wrong pad, wrong glue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bnn_compiler
from bnn_compiler.cli.main import run
from bnn_compiler.errors import VerificationError
from bnn_compiler.kernels import kernel_choice
from bnn_compiler.kernels.derived_constant import value_of
from bnn_compiler.kernels.layer_kernels import LayerKernels
from bnn_compiler.kernels.popcount_layer import popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.isa import Isa
from tests.conftest import ModelFinder

Plan = Callable[[BinarySpec, Isa], LayerKernels]


def flip_one_weight_bit(spec: BinarySpec, isa: Isa) -> LayerKernels:
    kernels = popcount_kernels(spec, isa)
    weights, *others = kernels.product.constants
    wrong = value_of(weights).copy()
    wrong.reshape(-1)[0] ^= np.uint64(1)
    return replace(kernels, stages=(*kernels.stages[:-1], replace(kernels.product, constants=(wrong, *others))))


def move_one_threshold(spec: BinarySpec, isa: Isa) -> LayerKernels:
    if spec.threshold.size == 1:
        return popcount_kernels(spec, isa)
    wrong = spec.threshold.copy()
    wrong.reshape(-1)[0] += 4
    return popcount_kernels(replace(spec, threshold=wrong), isa)


def pad_with_the_other_value(spec: BinarySpec, isa: Isa) -> LayerKernels:
    # The form of the network for inputs that hold zeros has them in the frame, too, and is left as it is.
    return popcount_kernels(spec if spec.ring is None else replace(spec, ring=-spec.ring), isa)


def pad_with_minus_one_for_zero(spec: BinarySpec, isa: Isa) -> LayerKernels:
    return popcount_kernels(replace(spec, ring=spec.low), isa)


@pytest.mark.parametrize(
    ("graph", "wrong"),
    [
        ("base_sign_conv", flip_one_weight_bit),
        ("gemm_noT", flip_one_weight_bit),
        ("int_threshold_tie", move_one_threshold),
        ("pad_minus1", pad_with_the_other_value),
        ("base_sign_conv", pad_with_minus_one_for_zero),
    ],
)
def test_wrong_kernel(
    graph: str,
    wrong: Plan,
    small_model: ModelFinder,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = small_model(graph)
    layers = [layer["name"] for layer in bnn_compiler.inspect_model(path)["layers"]]
    monkeypatch.setattr(kernel_choice, "popcount_kernels", wrong)
    with pytest.raises(VerificationError) as caught:
        bnn_compiler.compile_model(path)
    named = [layer for layer in layers if repr(layer) in str(caught.value)]
    assert named == [layers[-1]], caught.value

    output = tmp_path / "model.so"
    assert run(["compile", str(path), "-o", str(output)]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"bnnc: {path}: verification failed")
    assert repr(layers[-1]) in line
    assert list(tmp_path.iterdir()) == []
