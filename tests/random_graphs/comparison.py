"""Compiles a random model and compares it with ONNX Runtime."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np

from bnn_compiler.build import build_library
from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.driver import lower_model, plus_tensors
from bnn_compiler.frontend import import_onnx
from bnn_compiler.options import CompileOptions
from bnn_compiler.target import parse_target
from bnn_compiler.verification.attempts import verify_network
from bnn_compiler.verification.reference import Reference, take_zero_as_plus_one

from .chains import RandomModel

SAMPLES = 3


def disagreements(random_model: RandomModel, *, algorithm: str = "auto", sign_zero: str = "plus") -> list[str]:
    """What the compiled model does otherwise than ONNX Runtime, one line each; empty if all is well.

    1. Verification, on its own random inputs: layer by layer, and end to end within its tolerances.
    2. Outputs with one right answer, bit for bit, on inputs that often lie next to and on thresholds.
    3. Layers that are binary by construction are found to be binary.

    Raises:
        BnncError: the model is refused, though every operator is one that should be compiled.
    """
    target = parse_target("native")
    options = CompileOptions(algorithm=algorithm, sign_zero=sign_zero)  # type: ignore[arg-type]
    imported = import_onnx(random_model.model)
    lowered = lower_model(imported, target, options)
    zeros = plus_tensors(lowered.report)
    entries = [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in imported.inputs]
    results = [{"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype} for spec in imported.outputs]
    manifest = {"model": imported.name, "inputs": entries, "outputs": results, "report": lowered.report}
    found = []
    with tempfile.TemporaryDirectory(prefix="bnnc-test-") as directory:
        library = Path(directory) / "model.so"
        build_library(lowered.module, target, manifest, library)
        compiled = CompiledNetwork(library, lowered.report, runs_here=True)
    check = verify_network(
        compiled, imported, lowered.layers, original=random_model.model, zero_as_plus_one=zeros, float_layers=0
    )
    if check.failure is not None:
        found.append(f"verification: {check.failure}")
    reference = Reference(take_zero_as_plus_one(imported.onnx_model, zeros), optimise=False)
    for seed in range(SAMPLES):
        feeds = random_model.feeds(seed)
        expected, actual = reference.run(feeds), compiled.run(feeds)
        for name in sorted(random_model.exact):
            differing = actual[name] != expected[name]
            if differing.any():
                at = tuple(int(index) for index in np.argwhere(differing)[0])
                found.append(
                    f"output {name}: {int(differing.sum())} of {differing.size} values differ on sample {seed}, "
                    f"{list(at)} is {actual[name][at]}, not {expected[name][at]}"
                )
    if sign_zero == "plus" and algorithm != "float":
        for layer in lowered.report["layers"]:
            wanted = random_model.expected.get(layer["name"], layer["status"])
            constant = re.search(
                r"takes the values \{[^,]*\}|take the values 0 and", layer["detail"]
            )  # one value, and a pad's
            if layer["status"] != wanted and not constant:
                found.append(
                    f"layer {layer['name']} is {layer['status']} ({layer['reason']}: {layer['detail']}), not {wanted}"
                )
    return found
