"""Findings on disk: the model, its inputs, and a text with the seed, the options and what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from .check import Result
from .generate import Case, Options
from .one_node import Array


def write_finding(folder: Path, seed: str, case: Case, result: Result) -> Path:
    """Write the files of a finding; the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{result.kind}__{seed}".translate({ord(character): "_" for character in " :/()=+"})
    path = folder / f"{stem}.onnx"
    path.write_bytes(case.model)
    (folder / f"{stem}.reference.onnx").write_bytes(case.reference)
    arrays = {f"{kind}/{name}": value for kind, feed in case.feeds.items() for name, value in feed.items()}
    with (folder / f"{stem}.npz").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    text = {"seed": seed, "options": asdict(case.options), "result": asdict(result), "operators": operators(case)}
    (folder / f"{stem}.json").write_text(json.dumps(text, indent=1) + "\n")
    return path


def read_finding(path: Path) -> Case:
    """The case of a finding's model."""
    feeds: dict[str, dict[str, Array]] = {}
    with np.load(path.with_suffix(".npz")) as arrays:
        for key in arrays:
            kind, name = key.split("/", 1)
            feeds.setdefault(kind, {})[name] = arrays[key]
    options = Options(**json.loads(path.with_suffix(".json").read_text())["options"])
    return Case(path.read_bytes(), path.with_suffix(".reference.onnx").read_bytes(), feeds, options)


def operators(case: Case) -> str:
    """The operators of the model, in order."""
    return " ".join(node.op_type for node in onnx.load_from_string(case.model).graph.node)
