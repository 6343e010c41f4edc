"""Solved trees on disk, by content: weights, options, version."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import BnncError, CacheWarning

from .channel_tree import ChannelTree, TreeError
from .problem import SignMatrix, TreeOptions

# Raise this when a search or a bound changes, so that old trees are not taken for new ones.
FORMAT = 2


def cache_key(matrix: SignMatrix, options: TreeOptions) -> str:
    """A digest of everything that decides the tree."""
    digest = hashlib.sha256()
    header = {"format": FORMAT, "shape": matrix.signs.shape, **asdict(options)}
    digest.update(json.dumps(header, sort_keys=True).encode())
    digest.update(np.packbits(matrix.signs).tobytes())
    return digest.hexdigest()


def cached(
    folder: Path | None, matrix: SignMatrix, options: TreeOptions, solve: Callable[[], ChannelTree]
) -> ChannelTree:
    """The stored tree, or a solved one, which is then stored.

    Files appear whole or not at all, so two processes at once are safe: the later one's equal file takes the place of
    the earlier one's. A file that cannot be read or holds a wrong tree is reported by a warning and computed again.
    """
    if folder is None:
        return solve()
    path = folder / f"{cache_key(matrix, options)}.npz"
    stored = _load(path, matrix)
    if stored is not None:
        return stored
    tree = solve()
    if not tree.method.endswith("interrupted"):
        _store(path, tree)
    return tree


def _load(path: Path, matrix: SignMatrix) -> ChannelTree | None:
    try:
        # NumPy leaves a file open that it was given by name and cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(bytes(stored["header"]).decode())
            vectors = np.unpackbits(stored["vectors"], axis=1, count=matrix.weights)
            tree = ChannelTree(
                parents=stored["parents"].astype(np.int64),
                negated=stored["negated"].astype(np.bool_),
                vectors=vectors,
                roots=tuple(header.pop("roots")),
                **header,
            )
        tree.check(matrix.signs)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, TreeError) as error:
        warnings.warn(f"{path}: not a usable channel tree, computed again: {error}", CacheWarning, stacklevel=4)
        return None
    return tree


def _store(path: Path, tree: ChannelTree) -> None:
    header = {
        "roots": tree.roots,
        "channels": tree.channels,
        "max_depth": tree.max_depth,
        "node_overhead": tree.node_overhead,
        "lower_bound": tree.lower_bound,
        "bound_problem": tree.bound_problem,
        "method": tree.method,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(
                file,
                header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                parents=tree.parents,
                negated=tree.negated,
                vectors=np.packbits(tree.vectors, axis=1),
            )
    except (OSError, BnncError) as error:
        # A full or read-only disk costs time on the next run, not this result.
        warnings.warn(f"{path}: the tree could not be stored: {error}", CacheWarning, stacklevel=4)
