from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import StringStringEntryProto, TensorProto

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx

from .onnx_text import constants, parse

WEIGHT = np.arange(16, dtype=np.float32)


def _model(**entries: str) -> onnx.ModelProto:
    model = parse("g (float[1,16] x) => (float[1,16] y) <float[16] w = {0}> { y = Add(x, w) }")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16], data_location=TensorProto.EXTERNAL)
    tensor.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in entries.items())
    model.graph.initializer[0].CopyFrom(tensor)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's directory with weights in it, beside a file that must not be read."""
    (tmp_path / "secret.bin").write_bytes(WEIGHT.tobytes())
    inside = tmp_path / "model"
    (inside / "weights").mkdir(parents=True)
    (inside / "w.bin").write_bytes(b"\xff" * 8 + WEIGHT.tobytes())
    (inside / "weights" / "w.bin").write_bytes(WEIGHT.tobytes())
    (inside / "w..bin").write_bytes(WEIGHT.tobytes())
    return inside


def _import(folder: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return import_onnx(path).onnx_model


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "w.bin", "offset": "8", "length": "64"},
        {"location": "w.bin", "offset": "8"},
        {"location": "weights/w.bin"},
        {"location": "./weights/w.bin"},
        {"location": "w..bin"},
    ],
)
def test_data_inside_the_directory_is_read(folder: Path, entries: dict[str, str]) -> None:
    np.testing.assert_array_equal(constants(_import(folder, _model(**entries)))["w"], WEIGHT)


def test_a_link_that_stays_inside_is_followed(folder: Path) -> None:
    (folder / "link.bin").symlink_to("weights/w.bin")
    np.testing.assert_array_equal(constants(_import(folder, _model(location="link.bin")))["w"], WEIGHT)


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ({}, "its location is not given"),
        ({"location": "gone.bin"}, "'gone.bin' of tensor 'w' is missing"),
        ({"location": "../secret.bin"}, r"refused: it may only lie in the model's own directory"),
        ({"location": "weights/../../secret.bin"}, r"refused: it may only lie"),
        ({"location": "/etc/hostname"}, "refused: it may only lie"),
        ({"location": "..\\secret.bin"}, "refused: its path holds a backslash"),
        ({"location": "w.bin\0"}, "NUL"),
        ({"location": "weights"}, "is not a regular file"),
        ({"location": "x" * 5000}, "cannot be opened"),
        ({"location": "w.bin", "offset": "9"}, "ends at byte 73, but the file has only 72"),
        ({"location": "w.bin", "offset": "-8"}, "offset '-8', which is no number"),
        ({"location": "w.bin", "offset": "9" * 5000}, "which is no number"),
        ({"location": "w.bin", "length": "60"}, "length of 60 bytes, but the tensor's shape needs 64"),
        ({"location": "w.bin", "length": "eight"}, "length 'eight', which is no number"),
    ],
)
def test_refused_references(folder: Path, entries: dict[str, str], cause: str) -> None:
    with pytest.raises(ModelError, match=f"^m.onnx: .*{cause}"):
        _import(folder, _model(**entries))


@pytest.mark.parametrize("target", ["../secret.bin", "/etc/hostname", "loop.bin"])
def test_links_that_lead_out_or_in_circles(folder: Path, target: str) -> None:
    (folder / "loop.bin").symlink_to(target)
    with pytest.raises(ModelError, match=r"leads out of the model's directory|cannot be opened"):
        _import(folder, _model(location="loop.bin"))


def test_a_linked_directory_that_leads_out(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    with pytest.raises(ModelError, match="leads out"):
        _import(folder, _model(location="up/secret.bin"))


def test_a_large_claim_over_a_small_file_allocates_nothing(folder: Path) -> None:
    model = _model(location="w.bin")
    model.graph.initializer[0].dims[0] = 2**28
    with pytest.raises(ModelError, match="ends at byte 1073741824, but the file has only 72"):
        _import(folder, model)
    model.graph.initializer[0].dims[0] = 2**60
    with pytest.raises(ModelError, match="larger than 2 GiB"):
        _import(folder, model)


def test_a_model_in_memory_has_no_directory() -> None:
    with pytest.raises(ModelError, match="cannot be found for a model in memory"):
        import_onnx(_model(location="w.bin"))
