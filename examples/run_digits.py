"""Compile the digits network, run the library on held-out images, and compare with ONNX Runtime.

    python examples/run_digits.py

The network takes the batch size it is compiled for: here one image, then all of them at once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import bnn_compiler

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Print the accuracy of both, and fail if a class differs."""
    test = np.load(HERE / "digits_test.npz")
    images, labels = test["image"], test["label"]
    session = onnxruntime.InferenceSession(str(HERE / "digits.onnx"), providers=["CPUExecutionProvider"])
    reference = session.run(None, {"image": images})[0].argmax(axis=1)

    compiled = bnn_compiler.compile_model(HERE / "digits.onnx")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "digits.so"
        compiled.export(library)
        model = bnn_compiler.load(library)
        single = np.array([model.run({"image": image[None]})["score"].argmax() for image in images])
    batched = bnn_compiler.compile_model(HERE / "digits.onnx", input_shapes={"image": images.shape})
    batch = batched.run({"image": images})["score"].argmax(axis=1)

    for name, classes in (("ONNX Runtime", reference), ("bnnc, one by one", single), ("bnnc, one batch", batch)):
        print(f"{name:17} {(classes == labels).sum()}/{len(labels)} right ({100 * (classes == labels).mean():.1f} %)")
    if not (np.array_equal(single, reference) and np.array_equal(batch, reference)):
        raise SystemExit("the compiled network and ONNX Runtime disagree")


if __name__ == "__main__":
    main()
