"""What verification looks at inside a network: binary layers one by one, and the signs that enter them.

``flips`` counts the activation bits that the artifact's ``main`` computes otherwise than the artifact's own binarisers
do on ONNX Runtime's values of the same tensors (``passes/expose_activation_bits.py``): the values differ by rounding,
and lie on two sides of a threshold. Rounding does that to few, and to none but values next to a threshold, so in the
first layer with flips there may be ``FIRST_FLIPS`` of them, or ``FIRST_FLIP_SHARE`` of its activations, all within
``NEAR_A_THRESHOLD``. ``reference_flips`` counts the elements that differ between two evaluations in ONNX Runtime, with
and without graph optimisation: how prone a network is to flips by itself.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import ModelProto

from bnn_compiler.layers import BinaryLayer
from bnn_compiler.verification.layer_check import LayerCheck, check_layer
from bnn_compiler.verification.reference import Array, Feeds, Reference, expose, node_activation

FIRST_FLIPS = 2
FIRST_FLIP_SHARE = 1e-3
NEAR_A_THRESHOLD = 2.0**-16
"""Of a tensor's largest absolute value: what rounding may move its values by. Sums of thousands of terms of that size
err by about sqrt(thousands)·2^-24 of it in float32, and a value has gone through a few of them."""


class Runnable(Protocol):
    """What verification needs of a compiled model."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the network."""
        ...

    def run_function(self, name: str, value: Array) -> Array:
        """Run a function of the library that takes and gives one array: a binary layer alone, or its binariser."""
        ...

    def activation_bits(self, feeds: Feeds) -> dict[str, Array]:
        """Packed activations by the name of the (first) layer function that takes them; empty if it cannot tell."""
        ...


@dataclass(frozen=True)
class FlipCheck:
    """Sign flips of one layer's activations on one input; ``activations`` is their number.

    ``near`` counts the flips of values that lie within ``NEAR_A_THRESHOLD`` of a threshold in ONNX Runtime.
    """

    layer: str
    flips: int
    activations: int
    near: int = 0

    @property
    def plausible(self) -> bool:
        """Whether rounding alone may flip these in the first layer that has any."""
        return self.undecided and self.flips <= max(FIRST_FLIPS, FIRST_FLIP_SHARE * self.activations)

    @property
    def undecided(self) -> bool:
        """Whether rounding decides every flipped sign, however many they are."""
        return self.near == self.flips


class InnerTensors:
    """Inputs, outputs and activations of the binary layers, in ONNX Runtime and in the artifact."""

    def __init__(
        self, compiled: Runnable, model: ModelProto, layers: Sequence[BinaryLayer], observed: Collection[str] = ()
    ) -> None:
        """Load ``model`` into ONNX Runtime twice; layers whose tensors have no names in it are left out.

        Of ``observed``, further tensors to look at, those that the main graph has are kept.
        """
        self._compiled = compiled
        self._layers = [layer for layer in layers if layer.input_tensor is not None and layer.output_tensor is not None]
        self.skipped = tuple(layer.name for layer in layers if layer not in self._layers)
        found = (node_activation(model, layer.name) for layer in layers)
        self._activations = list(dict.fromkeys(name for name in found if name is not None))
        tensors = [name for layer in self._layers for name in (layer.input_tensor, layer.output_tensor) if name]
        known = {value.name for value in model.graph.input}.union(*(node.output for node in model.graph.node))
        self.observed = tuple(name for name in dict.fromkeys(observed) if name in known)
        exposed = expose(model, [*tensors, *self._activations, *self.observed])
        self._plain, self._optimised = Reference(exposed, optimise=False), Reference(exposed)

    def reference_values(self, feed: Feeds) -> dict[str, Array]:
        """All tensors in ONNX Runtime without graph optimisation, and the inputs."""
        return {**feed, **self._plain.run(feed)}

    def reference_flips(self, feed: Feeds, values: Mapping[str, Array]) -> int:
        """Activations that ONNX Runtime itself computes otherwise with graph optimisation."""
        others = self._optimised.run(feed)
        return sum(int((values[name] != others[name]).sum()) for name in self._activations if name in others)

    def flips(self, feed: Feeds, values: Mapping[str, Array]) -> list[tuple[FlipCheck, ...]]:
        """One entry, the layers whose activations differ from ONNX Runtime's; none if the artifact cannot tell."""
        bits = self._compiled.activation_bits(feed)
        if not bits:
            return []
        found = []
        for layer in self._layers:
            if layer.function in bits:
                value = layer_input(layer, values)
                expected = self._binarised(layer, value)
                flipped = bits[layer.function] ^ expected
                if flipped.any():
                    near = flipped & self._near_a_threshold(layer, value, expected)
                    found.append(FlipCheck(layer.name, _ones(flipped), math.prod(layer.input_shape), _ones(near)))
        return [tuple(found)]

    def _binarised(self, layer: BinaryLayer, value: Array) -> Array:
        return self._compiled.run_function(f"{layer.function}_bits", value)

    def _near_a_threshold(self, layer: BinaryLayer, value: Array, expected: Array) -> Array:
        """The bits of a layer's activations that a shift of all its input changes, up or down."""
        largest = np.abs(value[np.isfinite(value)]).max(initial=0.0)
        shift = value.dtype.type(NEAR_A_THRESHOLD * largest)
        changed = [self._binarised(layer, shifted) ^ expected for shifted in (value - shift, value + shift)]
        return np.asarray(changed[0] | changed[1])

    def check_layers(self, values: Mapping[str, Array]) -> tuple[LayerCheck, ...]:
        """Every layer, fed ONNX Runtime's own input of it."""
        return tuple(
            check_layer(
                layer,
                self._compiled.run_function(layer.function, layer_input(layer, values)),
                _permuted(values[output], layer.output_axes),
            )
            for layer in self._layers
            if (output := layer.output_tensor) is not None
        )


def _ones(bits: Array) -> int:
    return int(np.unpackbits(bits.view(np.uint8)).sum())


def layer_input(layer: BinaryLayer, values: Mapping[str, Array]) -> Array:
    """What the layer's functions take, from the ONNX tensors' ``values``."""
    assert layer.input_tensor is not None, "only called for layers whose tensors have names"
    value = _permuted(values[layer.input_tensor], layer.input_axes)
    return np.ascontiguousarray(value.reshape(layer.input_shape))


def _permuted(value: Array, axes: tuple[int, ...] | None) -> Array:
    return value if axes is None else np.ascontiguousarray(value.transpose(axes))
