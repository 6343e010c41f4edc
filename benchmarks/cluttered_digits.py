"""Cluttered digits: scikit-learn's handwritten digits over fragments of other digits, seeded.

An image is 28x28, float32 in [0, 1]. One whole digit (2 to 2.6 times its 8x8 pixels, turned by up to 20 degrees, at
any place where it fits, of random contrast) lies over three to six dimmer fragments of other digits, each half a digit
or less. Train and test images are made from disjoint sets of originals, and so are those that a set-up is chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SIZE = 28
ORIGINAL = 8
TEST_ORIGINALS, VALIDATION_ORIGINALS = 500, 300


@dataclass(frozen=True, eq=False)
class Split:
    """Images [n, 1, 28, 28] and their labels [n]."""

    images: Images
    labels: Labels


def make_splits(train: int, test: int, seed: int = 0, *, validation: bool = False) -> tuple[Split, Split]:
    """Generate both splits; the same arguments give the same images.

    500 of the 1797 originals, the same for every seed, are the test's alone. ``validation``: leave them alone, and make
    the second split of 300 of the others, the first one of the rest.
    """
    digits = load_digits()
    originals = (digits.images / 16.0).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(1797).permutation(len(originals))
    held, kept = order[:TEST_ORIGINALS], order[TEST_ORIGINALS:]
    if validation:
        held, kept = kept[:VALIDATION_ORIGINALS], kept[VALIDATION_ORIGINALS:]
    streams = np.random.default_rng(seed).spawn(2)
    return (
        _make(originals[kept], labels[kept], train, streams[0]),
        _make(originals[held], labels[held], test, streams[1]),
    )


def _make(originals: Images, labels: Labels, count: int, random: np.random.Generator) -> Split:
    chosen = random.integers(len(originals), size=count)
    images = np.stack([_image(originals, int(index), random) for index in chosen])
    return Split(images[:, None], labels[chosen])


def _image(originals: Images, index: int, random: np.random.Generator) -> Images:
    canvas = np.zeros((SIZE, SIZE), np.float32)
    for _ in range(int(random.integers(3, 7))):
        other = originals[int(random.integers(len(originals)))].copy()
        # A fragment: a window of 3 to 5 rows and columns of the original.
        height, width = random.integers(3, 6, 2)
        top, left = random.integers(0, ORIGINAL - height + 1), random.integers(0, ORIGINAL - width + 1)
        mask = np.zeros_like(other)
        mask[top : top + height, left : left + width] = 1
        _paste(canvas, other * mask, random, contrast=(0.25, 0.6), inside=False)
    _paste(canvas, originals[index], random, contrast=(0.6, 1.0), inside=True)
    return canvas


def _paste(
    canvas: Images, original: Images, random: np.random.Generator, *, contrast: tuple[float, float], inside: bool
) -> None:
    """Lay ``original`` over ``canvas``, scaled, turned and placed at random; what is brighter stays."""
    scale = random.uniform(2.0, 2.6)
    angle = np.deg2rad(random.uniform(-20, 20))
    radius = scale * ORIGINAL / 2 if inside else 0.0
    centre = random.uniform(radius, SIZE - 1 - radius, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    offset = np.full(2, (ORIGINAL - 1) / 2) - turn @ centre
    placed = affine_transform(original, turn, offset, (SIZE, SIZE), order=1)
    np.maximum(canvas, placed * np.float32(random.uniform(*contrast)), out=canvas)
