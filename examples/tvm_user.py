"""The binary stages as passes in a TVM pipeline of one's own.

    python examples/tvm_user.py

Here the module comes from TVM's own ONNX importer; tvm_torch_user.py shows one from its PyTorch importer.
``CompileBinaryOps`` recognises the binary layers of any Relax module and lowers them to packed popcount kernels; the
rest goes through TVM as it always does. The module attribute ``bnnc.layers`` says what was found, as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from bnn_compiler.passes import CompileBinaryOps
from bnn_compiler.target import parse_target

HERE = Path(__file__).resolve().parent
Array = npt.NDArray[np.float32]


def compile_and_run(module: tvm.IRModule, image: Array) -> Array:
    """Compile ``module`` with the binary passes in a TVM pipeline, and run it once."""
    target = parse_target("native").tvm_target  # or any TVM target whose kind is llvm
    with target:
        module = tvm.transform.Sequential([relax.transform.DecomposeOpsForInference(), CompileBinaryOps()])(module)
    layers = json.loads(str(module.attrs["bnnc.layers"]))
    for layer in layers:
        print(f"  {layer['name']:24} {layer['status']:14} {layer.get('kernel') or layer['reason']}")
    executable = relax.build(module, target)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(image))
    # The PyTorch importer returns a tuple of outputs.
    output = result if hasattr(result, "numpy") else result[0]
    scores: Array = output.numpy()
    return scores


def check(scores: Array, expected: Array) -> None:
    """Fail if the scores differ from the reference's by more than float rounding."""
    error = float(np.abs(scores - expected).max() / np.abs(expected).max())
    print(f"largest difference from the reference: {error:.1e} of the largest score")
    if error > 1e-4:
        raise SystemExit("the scores differ from the reference's")


def main() -> None:
    """Compile, run, and compare with ONNX Runtime."""
    image: Array = np.load(HERE / "digits_test.npz")["image"][:1]
    module = from_onnx(onnx.load(HERE / "digits.onnx"), shape_dict={"image": list(image.shape)})
    session = onnxruntime.InferenceSession(str(HERE / "digits.onnx"), providers=["CPUExecutionProvider"])
    check(compile_and_run(module, image), session.run(None, {"image": image})[0])


if __name__ == "__main__":
    main()
