"""Checkpoints: everything that the rest of a training run depends on, in one file that appears whole or not at all."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import ArtifactError
from bnn_compiler.regular_file import GIB, UnreadableFileError, read_regular, shown

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, and dicts and lists of them).

    Raises:
        ArtifactError: the file cannot be written; what was there before stays.
    """
    with atomic_write(path) as stream:
        torch.save({"format": FORMAT, **state}, stream)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote; no code in the file is run.

    Raises:
        ArtifactError: the file is missing, damaged or of another format.
    """
    try:
        data = read_regular(path, 64 * GIB)
    except UnreadableFileError as error:
        raise ArtifactError(f"{shown(path)}: cannot be read: {error}") from error
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"{path}: not a training checkpoint, or a damaged one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ArtifactError(f"{path}: a checkpoint of another format; this version reads format {FORMAT}")
    return state
