"""Tensors whose data lies in files beside the model.

Conditions on each reference, cited by number in the code:

1. the model came from a file, so that there is a directory to look in;
2. the location is relative, has no ``..`` in it, and no backslash or NUL;
3. resolved through symbolic links, it still lies in the model's directory (itself resolved);
4. it is a regular file that can be read;
5. offset and length are non-negative integers inside the file, and the length is what the tensor's shape needs.

They are checked before anything is read, so that a hostile model can neither read other files nor make the compiler
allocate what its few bytes only claim. ONNX's own loader applies 2 and 3 in part, and not 5.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from onnx import TensorProto

from bnn_compiler.errors import ModelError


def read_external_data(tensor: TensorProto, directory: Path | None, expected_bytes: int) -> bytes:
    """The raw little-endian data of one tensor of ``expected_bytes`` bytes.

    Raises:
        ModelError: a condition of this module does not hold.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    what = f"the external data {location!r} of tensor {tensor.name!r}"
    if not location:
        raise ModelError(f"tensor {tensor.name!r} is stored outside the model, but its location is not given")
    if directory is None:  # 1
        raise ModelError(f"{what} cannot be found for a model in memory: give the path of the model file instead")
    path = _inside(directory, location, what)
    offset, length = _integer(entries, "offset", 0, what), _integer(entries, "length", expected_bytes, what)
    if length != expected_bytes:  # 5
        raise ModelError(f"{what} has a length of {length} bytes, but the tensor's shape needs {expected_bytes}")
    try:
        size = path.stat().st_size
        if offset + length > size:  # 5
            raise ModelError(f"{what} ends at byte {offset + length}, but the file has only {size}")
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(length)
    except OSError as error:
        raise ModelError(f"{what} cannot be read: {error.strerror or error}") from error
    if len(data) != length:
        raise ModelError(f"{what} became shorter while it was read")
    return data


def _inside(directory: Path, location: str, what: str) -> Path:
    """The file that ``location`` names, after conditions 2 to 4."""
    if "\\" in location or "\0" in location:  # 2
        raise ModelError(f"{what} is refused: its path holds a backslash or a NUL character")
    relative = PurePosixPath(location)
    if relative.is_absolute() or ".." in relative.parts:  # 2
        raise ModelError(f"{what} is refused: it may only lie in the model's own directory, without '..'")
    try:
        root = directory.resolve(strict=True)
        path = (root / relative).resolve(strict=True)
    except FileNotFoundError as error:
        raise ModelError(f"{what} is missing: no such file in {str(directory)!r}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links, before Python 3.13
        # An OSError's text repeats the path, however long it is.
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ModelError(f"{what} cannot be opened: {reason}") from error
    if not path.is_relative_to(root):  # 3
        raise ModelError(f"{what} is refused: a symbolic link leads out of the model's directory")
    if not path.is_file():  # 4
        raise ModelError(f"{what} is not a regular file")
    return path


def _integer(entries: dict[str, str], key: str, default: int, what: str) -> int:
    text = entries.get(key, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18):  # 5
        raise ModelError(f"{what} has the {key} {text[:40]!r}, which is no number of bytes")
    return int(text)
