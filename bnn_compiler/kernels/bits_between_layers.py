"""Which layers can hand bits to their readers, without floats in between.

A layer does where

1. all that reads its result are binary convolutions, each directly (no transpose, reshape or max-pool between them, and
   the result is no output of the network);
2. they pack it in the same way: same comparison, same padding ring;
3. its kernels can (``LayerKernels.bits_for``): the bit of each channel is a threshold of its integer result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, GlobalVar, Var

from bnn_compiler.kernels.layer_kernels import Kernel, LayerKernels, alphabet_of, pack_rule, ring_code
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape

Layer = tuple[BinarySpec, LayerKernels]


@dataclass(frozen=True, eq=False)
class BitFlow:
    """``stages``: by the composite that hands on bits, those in place of its last one; who reads packed bits."""

    stages: dict[str, tuple[Kernel, ...]]
    readers: frozenset[str]


def plan_bit_flow(function: relax.Function, layers: Mapping[str, Layer]) -> BitFlow:
    """Find the layers of ``function`` that hand on bits.

    ``layers`` gives what each composite of the module computes, and its kernels.
    """
    calls = {
        binding.var: binding.value
        for block in function.body.blocks
        for binding in block.bindings
        if _composite(binding.value) in layers
    }
    readers = _direct_readers(function, calls)
    stages: dict[str, tuple[Kernel, ...]] = {}
    packed: set[str] = set()
    for variable, names in readers.items():
        name = _composite(calls[variable])
        assert name is not None
        spec, kernels = layers[name]
        specs = [layers[reader][0] for reader in names]
        if spec.suffix or any(reader.prefix or reader.geometry is None for reader in specs):  # 1
            continue
        if any(not _packs_alike(specs[0], other) for other in specs[1:]):  # 2
            continue
        found = kernels.bits_for(specs[0])  # 3
        if found is not None:
            stages[name] = found
            packed.update(names)
    return BitFlow(stages, frozenset(packed))


def _composite(value: Any) -> str | None:
    is_call = isinstance(value, Call) and isinstance(value.op, GlobalVar)
    return str(value.op.name_hint) if is_call else None


def _direct_readers(function: relax.Function, calls: Mapping[Var, Call]) -> dict[Var, list[str]]:
    """The composites that read each call's result, for the results that nothing else reads."""
    readers: dict[Var, list[str]] = {variable: [] for variable in calls}
    others: set[Var] = set()

    def visit(expr: Any) -> None:
        if isinstance(expr, Var):
            others.add(expr)

    for block in function.body.blocks:
        for binding in block.bindings:
            if binding.var in calls:
                source = calls[binding.var].args[0]
                name = _composite(binding.value)
                if source in readers and name is not None:
                    readers[source].append(name)
            else:
                relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(function.body.body, visit)
    return {variable: names for variable, names in readers.items() if names and variable not in others}


def _packs_alike(left: BinarySpec, right: BinarySpec) -> bool:
    if left.geometry is None or right.geometry is None or ring_code(left) != ring_code(right):
        return False
    (rule, parameters), (other_rule, other_parameters) = pack_rule(left), pack_rule(right)
    return (
        rule == other_rule
        and len(parameters) == len(other_parameters)
        and all(np.array_equal(a, b) for a, b in zip(parameters, other_parameters, strict=True))
        and left.geometry.pads == right.geometry.pads
        and conv_bits_shape(left.geometry, alphabet_of(left)) == conv_bits_shape(right.geometry, alphabet_of(right))
    )
