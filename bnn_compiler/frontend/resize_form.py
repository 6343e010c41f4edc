"""What a ``Resize`` or ``Upsample`` node asks for, whatever its operator set, or why ONNX Runtime would not run it.

Operator sets differ in their inputs and defaults:

    Upsample-7          scales are an attribute
    Upsample-9          scales are the second input
    Resize-10           likewise; ``asymmetric`` coordinates and rounding down (up where the axis shrinks), as before
    Resize-11 to -17    region of interest, scales, sizes as inputs; coordinate and rounding modes
    Resize-18 on        antialiasing, ``axes`` that the inputs speak of, ``keep_aspect_ratio_policy``

A length becomes floor(scale · length), in float32; sizes make the scale size / length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnn_compiler.errors import UnsupportedOperatorError

from .resize_coordinates import COORDINATE_MODES, CROP, LEGACY, NEAREST_MODES, ResizedAxis

_Array = npt.NDArray[Any]

LONGEST_AXIS = 2**31
"""Elements of a resized axis that anything could compute."""

DTYPES = frozenset({"float32", "int8", "uint8", "int32"})
"""Element types that ONNX Runtime resizes on CPUs (and float16, which is float32 by now)."""


@dataclass(frozen=True)
class ResizeForm:
    """One node; ``region`` says whether coordinates beyond an axis give ``fill``."""

    mode: str
    coordinate_mode: str
    nearest_mode: str
    cubic_coefficient: float
    exclude_outside: bool
    antialias: bool
    fill: float
    axes: tuple[ResizedAxis, ...]

    @property
    def region(self) -> bool:
        """Whether a region of interest is resized."""
        return self.coordinate_mode == CROP

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        return tuple(axis.resized for axis in self.axes)

    @property
    def is_copy(self) -> bool:
        """ONNX Runtime copies where no length changes, whatever the coordinates say."""
        return all(axis.length == axis.resized for axis in self.axes)

    @property
    def channels_last(self) -> bool:
        """Whether rows and columns are axes 1 and 2 of 4."""
        return len(self.axes) == 4 and self.axes[1].scale != 1

    @property
    def interpolated(self) -> tuple[int, ...]:
        """The axes that linear and cubic modes resize, two or three."""
        rank = len(self.axes)
        if rank == 4:
            return (1, 2) if self.channels_last else (2, 3)
        return tuple(range(rank)) if rank < 4 else tuple(range(2, rank))


def read_form(
    node: str,
    operator: str,
    opset: int,
    shape: Sequence[int],
    dtype: str,
    inputs: Sequence[_Array | None],
    attributes: Mapping[str, Any],
) -> ResizeForm:
    """The form of a node that resizes a tensor of ``shape`` and ``dtype``.

    Args:
        node: the node's description, for messages.
        operator: ``Resize`` or ``Upsample``.
        opset: of the model.
        shape: of the data.
        dtype: of the data.
        inputs: the constant inputs behind the data, in the order of the operator set; ``None`` where absent.
        attributes: as ONNX has them, texts as bytes.

    Raises:
        UnsupportedOperatorError: ONNX Runtime does not run it; the message says what it wants.
    """
    reader = _Reader(node, attributes)
    if dtype not in DTYPES:
        reader.refuse(f"resizes {dtype}, which ONNX Runtime does not on CPUs: cast to float32 before, and back")
    if operator == "Upsample" or opset < 11:
        scales = np.asarray(attributes["scales"]) if "scales" in attributes else inputs[0]
        given: tuple[_Array | None, ...] = (None, scales, None)
    else:
        padded = [*inputs, None, None, None]
        given = (padded[0], padded[1], padded[2])
    modern = operator == "Resize" and opset >= 11
    chosen = reader.axes(len(shape)) if modern and opset >= 18 else list(range(len(shape)))
    regions = reader.regions(given[0], chosen, len(shape))
    form = ResizeForm(
        mode=reader.choice("mode", "nearest", {"nearest", "linear", "cubic"}),
        coordinate_mode=reader.choice("coordinate_transformation_mode", "half_pixel", COORDINATE_MODES)
        if modern
        else "asymmetric",
        nearest_mode=reader.choice("nearest_mode", "round_prefer_floor", NEAREST_MODES - {LEGACY})
        if modern
        else LEGACY,
        cubic_coefficient=float(attributes.get("cubic_coeff_a", -0.75)),
        exclude_outside=bool(attributes.get("exclude_outside", 0)),
        antialias=bool(attributes.get("antialias", 0)) and opset >= 18,
        fill=float(attributes.get("extrapolation_value", 0.0)),
        axes=tuple(
            ResizedAxis(length, resized, scale, region)
            for length, (resized, scale), region in zip(
                shape, reader.lengths(shape, chosen, given[1], given[2]), regions, strict=True
            )
        ),
    )
    _check_form(reader, form, operator, dtype)
    return form


class _Reader:
    """Reads attributes and inputs; refuses in the node's name."""

    def __init__(self, node: str, attributes: Mapping[str, Any]) -> None:
        self.node, self.attributes = node, attributes

    def refuse(self, reason: str) -> None:
        raise UnsupportedOperatorError(f"{self.node} {reason}")

    def choice(self, name: str, default: str, known: frozenset[str] | set[str]) -> str:
        value = self.attributes.get(name, default.encode())
        text = str(value.decode(errors="replace") if isinstance(value, bytes) else value)
        if text not in known:
            self.refuse(f"has the {name} {text!r}; known are {', '.join(sorted(known))}")
        return text

    def axes(self, rank: int) -> list[int]:
        """The axes that scales, sizes and the region of interest speak of."""
        given = [int(axis) for axis in self.attributes.get("axes", ())]
        if any(not -rank <= axis < rank for axis in given):
            self.refuse(f"has the axes {given} for data of rank {rank}")
        return [axis % rank for axis in given] or list(range(rank))

    def regions(self, given: _Array | None, chosen: Sequence[int], rank: int) -> list[tuple[np.float32, np.float32]]:
        """The region of interest per axis; 0 to 1 where none is given."""
        found = [(np.float32(0), np.float32(1))] * rank
        if self.choice("coordinate_transformation_mode", "half_pixel", COORDINATE_MODES) != CROP or given is None:
            return found
        bounds = given.reshape(-1).astype(np.float32)
        if len(bounds) != 2 * len(chosen):
            self.refuse(f"has a roi of {len(bounds)} numbers; two are wanted for each of {len(chosen)} axes")
        for index, axis in enumerate(chosen):
            found[axis] = (bounds[index], bounds[len(chosen) + index])
        return found

    def lengths(
        self, shape: Sequence[int], chosen: Sequence[int], scales: _Array | None, sizes: _Array | None
    ) -> list[tuple[int, np.float32]]:
        """Per axis, its new length and its scale."""
        by_scale, by_size = scales is not None and scales.size > 0, sizes is not None and sizes.size > 0
        if by_scale == by_size:
            self.refuse(f"has {'both' if by_scale else 'neither'} scales and sizes: give one of them")
        numbers = (scales if by_scale else sizes).reshape(-1)  # type: ignore[union-attr]
        if len(numbers) != len(chosen):
            self.refuse(f"has {len(numbers)} {'scales' if by_scale else 'sizes'} for {len(chosen)} axes")
        found = [(length, np.float32(1)) for length in shape]
        for axis, number in zip(chosen, numbers, strict=True):
            length = shape[axis]
            if by_scale:
                scale = np.float32(number)
                if not np.isfinite(scale) or abs(scale * np.float32(length)) > LONGEST_AXIS:
                    self.refuse(f"scales an axis of {length} elements by {scale:g}, which leaves no length to compute")
                found[axis] = (int(np.floor(scale * np.float32(length))), scale)
            else:
                found[axis] = (int(number), np.float32(number) / np.float32(length) if length else np.float32(1))
        return found if by_scale else self._keep_aspect_ratio(shape, chosen, found)

    def _keep_aspect_ratio(
        self, shape: Sequence[int], chosen: Sequence[int], found: list[tuple[int, np.float32]]
    ) -> list[tuple[int, np.float32]]:
        policy = self.choice("keep_aspect_ratio_policy", "stretch", {"stretch", "not_larger", "not_smaller"})
        if policy == "stretch":
            return found
        if any(axis < 0 for axis in self.attributes.get("axes", ())):
            self.refuse("counts axes from the end and has a keep_aspect_ratio_policy: ONNX Runtime ignores those axes")
        scale = (min if policy == "not_larger" else max)(found[axis][1] for axis in chosen)
        if any(scale * np.float32(shape[axis]) > LONGEST_AXIS for axis in chosen):
            self.refuse(f"scales its axes by {scale:g}, which leaves no length to compute")
        for axis in chosen:
            # Halves go away from zero; lengths are positive.
            found[axis] = (int(np.floor(np.float64(scale * np.float32(shape[axis])) + 0.5)), scale)
        return found


def _check_form(reader: _Reader, form: ResizeForm, operator: str, dtype: str) -> None:
    """Refuse what ONNX Runtime refuses."""
    scales = [axis.scale for axis in form.axes]
    shown = [round(float(scale), 4) for scale in scales]
    least = 1 if operator == "Upsample" else 0
    if any(not np.isfinite(scale) or scale < least or scale == 0 for scale in scales):
        reader.refuse(f"has the scales {shown}; {'at least 1' if least else 'more than 0'} is wanted")
    for axis in form.axes:
        if axis.length == 0 and axis.resized:
            reader.refuse("resizes an axis of no elements to one of some")
    outer = [scale == 1 for scale in scales]
    rank = len(scales)
    last = rank == 4 and outer[0] and outer[3]
    if form.mode == "linear" and not (rank in (2, 3) or (rank in (4, 5) and outer[0] and outer[1]) or last):
        reader.refuse(
            f"resizes linearly with the scales {shown}: 2 or 3 axes are wanted, or 4 or 5 with scales of 1 for "
            "batch and channels"
        )
    if form.mode == "cubic" and not (
        rank == 2
        or (rank == 4 and outer[0] and outer[1])
        or (last and (form.antialias or (scales[1] >= 1 and scales[2] >= 1)))
    ):
        reader.refuse(
            f"resizes by cubic interpolation with the scales {shown}: 2 axes are wanted, or 4 with scales of 1 for "
            "batch and channels"
        )
    if form.mode == "cubic" and not (dtype == "float32" or form.antialias or form.channels_last or form.is_copy):
        reader.refuse(f"resizes {dtype} by cubic interpolation: cast to float32 before, and back")
    if form.antialias and form.mode == "nearest":
        reader.refuse("has antialias in nearest mode, which has no filter")
    if form.exclude_outside and form.mode != "cubic" and not (form.antialias and form.mode == "linear"):
        reader.refuse("has exclude_outside, which only cubic and antialiasing modes know")
