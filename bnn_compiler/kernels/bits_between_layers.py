"""Which layers hand bits to their readers, without floats in between.

A layer does where only binary layers read its result, through operators that ``bit_paths`` knows, where their bits are
thresholds of its integers (``bit_thresholds``), and where its kernels can write what they read
(``LayerKernels.bits_for``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm.ir import Var

from bnn_compiler.kernels.bit_paths import BitEdge
from bnn_compiler.kernels.bit_thresholds import bit_thresholds
from bnn_compiler.kernels.layer_kernels import Handover, Kernel, LayerKernels, largest_activation, output_map
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.isa import Isa


@dataclass(frozen=True, eq=False)
class BitFlow:
    """``stages``: by the composite that hands on bits, those in place of its last one; who reads packed bits.

    ``operands`` gives, by the variable of a result that is handed on, the one that readers take in the module; what is
    ``skipped`` is not computed.
    """

    stages: dict[str, tuple[Kernel, ...]]
    readers: frozenset[str]
    operands: dict[Var, Var]
    skipped: frozenset[Var]


def handover_of(spec: BinarySpec, edge: BitEdge, isa: Isa) -> Handover | None:
    """What a layer has to write for its readers; None where their bits are no thresholds of its integers."""
    largest = spec.fan_in * largest_activation(spec)
    found = bit_thresholds(output_map(spec), largest, edge.reader, edge.path, fused=isa.fused_multiply_add)
    if found is None:
        return None
    return Handover(edge.reader, edge.path.pool, found.bounds, found.inverted, found.joined_by_and)


def plan_bit_flow(
    edges: Mapping[str, BitEdge], handovers: Mapping[str, Handover], kernels: Mapping[str, LayerKernels]
) -> BitFlow:
    """The layers that hand on bits; all mappings are by the composite of the layer that makes them."""
    stages = {}
    for name, handover in handovers.items():
        found = kernels[name].bits_for(handover)
        if found is not None:
            stages[name] = found
    used = [edges[name] for name in stages]
    return BitFlow(
        stages,
        frozenset(reader for edge in used for reader in edge.readers),
        {edge.result: edge.operand for edge in used if not edge.result.same_as(edge.operand)},
        frozenset(variable for edge in used for variable in edge.variables),
    )
