"""Paths that are no ordinary files, and data of tensors at such paths.

``PATHS`` lists them by name as functions of a folder: they make what is needed there and give the path to compile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from onnx import TensorProto

from .scaled import chain, model, node, tensor


def _external(folder: Path, location: str, **entries: str) -> Path:
    """A model of one constant whose data is at ``location``."""
    built = model([node("Add", ["x", "w"], "y")], [tensor("x")], [tensor("y")])
    constant = TensorProto(name="w", dims=[1, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        constant.external_data.add(key=key, value=value)
    built.graph.initializer.append(constant)
    path = folder / "model.onnx"
    path.write_bytes(built.SerializeToString())
    return path


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _data_in_a_pipe(folder: Path) -> Path:
    return _external(folder, _pipe(folder).name)


def _link(folder: Path, target: str) -> Path:
    (folder / "link").symlink_to(target)
    return folder / "link"


def _data_behind_a_link(folder: Path, target: str) -> Path:
    return _external(folder, _link(folder, target).name)


def _data_in_a_folder(folder: Path) -> Path:
    (folder / "inner").mkdir()
    return _external(folder, "inner")


def _short_data(folder: Path, **entries: str) -> Path:
    (folder / "data").write_bytes(b"\0" * 8)
    return _external(folder, "data", **entries)


def _unreadable(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(chain(3).SerializeToString())
    path.chmod(0)
    return path


def _sparse_file(folder: Path, size: int) -> Path:
    """A file that has a size and takes no space."""
    path = folder / "model.onnx"
    path.touch()
    os.truncate(path, size)
    return path


PATHS: Mapping[str, Callable[[Path], Path]] = {
    "a pipe": _pipe,
    "/dev/zero": lambda _: Path("/dev/zero"),
    "/dev/null": lambda _: Path("/dev/null"),
    "/dev/stdin": lambda _: Path("/dev/stdin"),
    "a folder": lambda folder: folder,
    "nothing": lambda folder: folder / "nothing.onnx",
    "a NUL in the path": lambda folder: folder / "a\0b.onnx",
    "a path of 10^4 characters": lambda folder: folder / ("n" * 10_000),
    "a link to itself": lambda folder: _link(folder, "link"),
    "a link to /dev/zero": lambda folder: _link(folder, "/dev/zero"),
    "a file without rights": _unreadable,
    "a file of 3 GiB of zeros": lambda folder: _sparse_file(folder, 3 << 30),
    "a file of 1 GiB of zeros": lambda folder: _sparse_file(folder, 1 << 30),
    "data at /dev/zero": lambda folder: _external(folder, "/dev/zero"),
    "data above": lambda folder: _external(folder, "../../../../../../../../etc/passwd"),
    "data behind a link to /dev/zero": lambda folder: _data_behind_a_link(folder, "/dev/zero"),
    "data behind a link to itself": lambda folder: _data_behind_a_link(folder, "link"),
    "data in a pipe": _data_in_a_pipe,
    "data in a folder": _data_in_a_folder,
    "data that is missing": lambda folder: _external(folder, "missing"),
    "data that is short": _short_data,
    "data at 2^62": lambda folder: _short_data(folder, offset=str(2**62)),
    "data at -1": lambda folder: _short_data(folder, offset="-1"),
    "data of 10^100 bytes": lambda folder: _short_data(folder, length="1" + "0" * 100),
    "data at a huge location": lambda folder: _external(folder, "d" * 1_000_000),
}
"""By name."""
