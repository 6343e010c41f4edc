"""Which layers compute what follows them in their own kernel.

A convolution takes in the chain of element-wise operators behind it (``output_chains``): residual additions,
activations, per-channel scales. A popcount convolution does more:

1. where such chains meet in a concatenation along the channels, one kernel computes all of them, and the chain behind
   the concatenation as far as it reads no residual;
2. where binary convolutions read the result, and pack it alike, it gives them the packed activation: beside the floats,
   or in their place where nothing else reads those.

Not fused are layers that hand on bits as integer thresholds (``bits_between_layers``), layers with a transpose or
reshape behind them, and dense layers. A kernel takes the place of the last operator in it, when all operands are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tvm import relax, tirx
from tvm.ir import Call, Var

from bnn_compiler.constants import op_name, static_shape
from bnn_compiler.kernels.bit_paths import composite_name, packs_alike
from bnn_compiler.kernels.bits_between_layers import BitFlow
from bnn_compiler.kernels.derived_constant import Constant
from bnn_compiler.kernels.layer_kernels import PARTS_ATTR, LayerKernels, alphabet_of, pack_rule, ring_code
from bnn_compiler.kernels.output_chains import DataFlow, Operand, OutputChain, follow
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.bit_gatherer import can_read_bits
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount_conv_fused import BitReader, popcount_conv2d_fused
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape

Layer = tuple[BinarySpec, LayerKernels]


@dataclass(frozen=True, eq=False)
class Part:
    """A layer in a fused kernel: its composite, its product's constants, and the operands of its chain."""

    composite: str
    constants: tuple[Constant, ...]
    operands: tuple[Operand, ...]


@dataclass(frozen=True, eq=False)
class FusedOutput:
    """One kernel: called on each part's packed activation, constants and operands, then on ``parameters``.

    It gives ``floats`` (a shape) where anything reads them, and ``bits`` (a shape) where ``readers`` do.
    """

    function: tirx.PrimFunc
    parts: tuple[Part, ...]
    parameters: tuple[Constant, ...]
    #: The variables whose definitions the kernel replaces, the layers' own included; the last is the result.
    absorbed: tuple[Var, ...]
    floats: tuple[int, ...] | None
    bits: tuple[int, ...] | None
    readers: tuple[str, ...] = ()

    @property
    def composites(self) -> tuple[str, ...]:
        """The layers in the kernel."""
        return tuple(part.composite for part in self.parts)

    @property
    def result(self) -> Var:
        """The variable that the kernel computes."""
        return self.absorbed[-1]


def plan_output_fusion(
    function: relax.Function, layers: Mapping[str, Layer], bit_flow: BitFlow, isa: Isa
) -> list[FusedOutput]:
    """Find what the layers of ``function`` compute together with what follows them."""
    flow = DataFlow(function)
    calls = {
        name: variable
        for variable, value in flow.bindings.items()
        if (name := composite_name(value)) is not None and name in layers and name not in bit_flow.stages
    }
    planner = _Planner(flow, layers, bit_flow, isa)
    for name, variable in calls.items():
        spec = layers[name][0]
        if spec.geometry is not None and not spec.suffix:
            planner.add_chain(name, variable)
    return planner.plan()


class _Planner:
    def __init__(self, flow: DataFlow, layers: Mapping[str, Layer], bit_flow: BitFlow, isa: Isa) -> None:
        self._flow = flow
        self._layers = layers
        self._bit_flow = bit_flow
        self._isa = isa
        #: By the variable they end at: composites and their chains, the product's variable first.
        self._chains: dict[Var, tuple[str, OutputChain]] = {}
        self._taken: set[Var] = set()

    def add_chain(self, name: str, variable: Var) -> None:
        """Register the chain of a layer; where two layers meet in an operator, the first takes it."""
        chain = follow(self._flow, variable, self._taken)
        self._taken.update(chain.absorbed)
        whole = OutputChain(absorbed=(variable,)).joined(chain)
        self._chains[whole.absorbed[-1]] = (name, whole)

    def plan(self) -> list[FusedOutput]:
        """The kernels that do more than the layers alone."""
        found = []
        in_concatenations: set[Var] = set()
        for variable, value in self._flow.bindings.items():
            if op_name(value) == "relax.concat" and (fused := self._concatenated(variable, value)) is not None:
                found.append(fused)
                in_concatenations.update(fused.absorbed)
        for end, (name, chain) in self._chains.items():
            if end not in in_concatenations and (fused := self._single(name, chain)) is not None:
                found.append(fused)
        return found

    def _single(self, name: str, chain: OutputChain) -> FusedOutput | None:
        kernels = self._layers[name][1]
        if kernels.fused_part is not None:
            return self._popcount([(name, chain)], chain.absorbed)
        if kernels.with_chain is None or not chain.steps or (function := kernels.with_chain(chain.steps)) is None:
            return None
        part = Part(name, kernels.product.constants, chain.operands)
        return self._finished(function, [part], (), chain.absorbed, floats=kernels.product.shape, bits=None)

    def _concatenated(self, variable: Var, call: Call) -> FusedOutput | None:
        """Rule 1."""
        shape = static_shape(call)
        ends = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
        if shape is None or len(shape) != 4 or int(call.attrs.axis) % 4 != 1 or len(ends) < 2:
            return None
        if any(end not in self._chains or self._flow.only_user(end) is None for end in ends):
            return None
        behind = follow(self._flow, variable, self._taken)
        if any(step.operand == "map" for step in behind.steps):
            behind = OutputChain()
        parts: list[tuple[str, OutputChain]] = []
        absorbed: list[Var] = []
        first = 0
        for end in ends:
            name, chain = self._chains[end]
            if self._layers[name][1].fused_part is None:
                return None
            channels = self._layers[name][0].out_channels
            own = behind.of_channels(first, channels)
            assert own is not None, "the chain behind reads no residual"
            parts.append((name, OutputChain((*chain.steps, *own.steps), (*chain.operands, *own.operands))))
            absorbed += chain.absorbed
            first += channels
        fused = self._popcount(parts, (*absorbed, variable, *behind.absorbed))
        if fused is not None:
            self._taken.update(behind.absorbed)
        return fused

    def _popcount(self, chains: Sequence[tuple[str, OutputChain]], absorbed: tuple[Var, ...]) -> FusedOutput | None:
        result = absorbed[-1]
        readers = self._bit_readers(result)
        users = [composite_name(self._flow.bindings[user]) for user in self._flow.uses.get(result, [])]
        gives_floats = any(user not in readers for user in users) or result in self._flow.outputs
        if len(absorbed) == 1 and not readers:
            return None
        if not readers and not gives_floats:
            return None  # nothing reads the result
        parts, fused_parts = [], []
        for name, chain in chains:
            kernels = self._layers[name][1]
            assert kernels.fused_part is not None
            fused_parts.append(kernels.fused_part(chain.steps))
            parts.append(Part(name, kernels.product.constants, chain.operands))
        reader, bits = None, None
        parameters: tuple[Constant, ...] = ()
        if readers:
            spec = self._layers[readers[0]][0]
            assert spec.geometry is not None
            rule, parameters = pack_rule(spec)
            reader = BitReader(spec.geometry, rule, ring_code(spec))
            bits = conv_bits_shape(spec.geometry, alphabet_of(spec))
        function = popcount_conv2d_fused(fused_parts, reader=reader, gives_floats=gives_floats, isa=self._isa)
        floats = static_shape(result) if gives_floats else None
        return self._finished(function, parts, parameters, absorbed, floats=floats, bits=bits, readers=readers)

    def _bit_readers(self, result: Var) -> tuple[str, ...]:
        """Rule 2: the layers that read ``result`` and pack it as the first of them does."""
        names: list[str] = []
        for user in self._flow.uses.get(result, []):
            name = composite_name(self._flow.bindings[user])
            if name is None or name not in self._layers or name in self._bit_flow.readers:
                continue
            spec = self._layers[name][0]
            if spec.prefix or spec.geometry is None or not can_read_bits(spec.geometry):
                continue
            if not names or packs_alike(self._layers[names[0]][0], spec):
                names.append(name)
        return tuple(names)

    @staticmethod
    def _finished(
        function: tirx.PrimFunc,
        parts: Sequence[Part],
        parameters: tuple[Constant, ...],
        absorbed: tuple[Var, ...],
        *,
        floats: tuple[int, ...] | None,
        bits: tuple[int, ...] | None,
        readers: tuple[str, ...] = (),
    ) -> FusedOutput:
        positions, position = [], 0
        for part in parts:
            positions += [position, len(part.constants)]
            position += 1 + len(part.constants) + len(part.operands)
        marked = function.with_attr(PARTS_ATTR, positions)
        return FusedOutput(marked, tuple(parts), parameters, absorbed, floats, bits, readers)
