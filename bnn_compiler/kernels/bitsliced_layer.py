"""The bit-sliced plan of a convolution: a channel tree per group, and the kernels that count along it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnn_compiler.constants import Array
from bnn_compiler.kernels.cost_model import CostModel
from bnn_compiler.kernels.derived_constant import Constant, DerivedConstant
from bnn_compiler.kernels.kernel_work import ListWork
from bnn_compiler.kernels.layer_kernels import (
    PARTS_ATTR,
    Handover,
    Kernel,
    LayerKernels,
    alphabet_of,
    needs_correction,
    output_map,
    pack_kernel,
    ring_code,
    zero_of,
)
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.bit_planes import PlaneLayout, make_bit_planes
from bnn_compiler.schedules.bit_pool import pool_masks
from bnn_compiler.schedules.bit_unslice import MOST_BITS
from bnn_compiler.schedules.bitsliced_bits import (
    bitsliced_conv2d_bits,
    bitsliced_conv2d_bits_constants,
    pack_bit_rows,
)
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import counter_bits, make_layout
from bnn_compiler.schedules.channel_program import (
    ALL_MINUS,
    ALL_PLUS,
    LONG_BLOCK,
    MOST_PLANES,
    ChannelTree,
    make_program,
)
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import PrimFunc
from bnn_compiler.schedules.output_chain import Chain
from bnn_compiler.schedules.popcount import WORD_BITS
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.program_expansion import expand_program, pack_node_vectors
from bnn_compiler.trees.channel_tree import ChannelTree as SolvedTree
from bnn_compiler.trees.channel_tree import TreeError
from bnn_compiler.trees.solve import solve_channel_tree

#: Of a plain tree's cost; measured on trained and random layers: 0.25 to 0.35 (docs/channel-trees.md).
_SYNTHETIC_SAVING = 0.4


@dataclass(frozen=True)
class TreePlanning:
    """How trees are found: see ``solve_channel_tree``. ``cache`` is a folder, or None for none."""

    max_depth: int = 8
    effort: str = "fast"
    seed: int = 0
    cache: Path | None = None


@dataclass(frozen=True, eq=False)
class BitslicedPlan:
    """A layout, one solved tree per group, and what the model predicts."""

    layout: PlaneLayout
    trees: tuple[SolvedTree, ...]

    @property
    def additions(self) -> int:
        """Planes added per block of pixels, all groups together."""
        return int(sum(np.sum(tree.edge_costs) for tree in self.trees))

    @property
    def differing_weights(self) -> int:
        """The paper's count, all groups together: weights that differ from the parent's, or the virtual parent's."""
        return int(sum(np.sum(tree.differing_weights) for tree in self.trees))

    @property
    def nodes(self) -> int:
        """Nodes of all groups, channels included."""
        return sum(len(tree.vectors) for tree in self.trees)

    @property
    def cost_ratio(self) -> float:
        """Planes added ÷ weights."""
        weights = sum(int(tree.channels) * int(tree.vectors.shape[1]) for tree in self.trees)
        return self.additions / weights

    @property
    def lists(self) -> ListWork:
        """The lists of planes of all groups."""
        lengths = np.concatenate([_list_lengths(tree) for tree in self.trees])
        return ListWork.of_lists(_alphabet_lengths(self.layout, lengths), self.nodes)


def can_be_bitsliced(spec: BinarySpec, isa: Isa) -> bool:
    """Whether the kernels take the layer: a convolution whose planes and sums fit 16 bits."""
    if spec.geometry is None or counter_bits(spec.geometry, alphabet_of(spec)) > MOST_BITS:
        return False
    return make_layout(spec.geometry, alphabet_of(spec), isa).level_planes <= MOST_PLANES


def optimistic_lists(spec: BinarySpec, layout: PlaneLayout) -> ListWork:
    """The lists of a better tree than is likely: a cheap test of whether it is worth being solved.

    Every channel is an edge away from its nearest other channel or root, and synthetic nodes save up to
    ``_SYNTHETIC_SAVING`` of a plain tree.
    """
    planes = _nearest_distances(_group_signs(spec)) * (1 - _SYNTHETIC_SAVING)
    planes *= 2 if layout.plane_stride else layout.levels
    return ListWork(planes / LONG_BLOCK, 0.0, spec.out_channels)


def star_plan(spec: BinarySpec, isa: Isa) -> BitslicedPlan:
    """Every channel from the nearer root: no tree is solved."""
    layout = _layout(spec, isa)
    return BitslicedPlan(layout, tuple(_star(group.astype(np.uint8)) for group in _group_signs(spec)))


def _star(signs: npt.NDArray[np.uint8]) -> SolvedTree:
    channels, weights = signs.shape
    plus = signs.sum(axis=1, dtype=np.int64)
    nearer = np.minimum(plus, weights - plus)
    return SolvedTree(
        parents=np.full(channels, -1, np.int64),
        roots=tuple("plus" if 2 * ones > weights else "minus" for ones in plus),
        negated=np.zeros(channels, np.bool_),
        vectors=signs,
        channels=channels,
        max_depth=1,
        node_overhead=0.0,
        lower_bound=float(nearer.sum()),
        bound_problem="star",
        method="star",
    )


def plan_bitsliced(spec: BinarySpec, isa: Isa, model: CostModel, planning: TreePlanning) -> BitslicedPlan:
    """Solve the trees of a convolution, one per group."""
    layout = _layout(spec, isa)
    overhead = model.node_overhead(layout)
    trees = tuple(
        solve_channel_tree(
            group.astype(np.uint8),
            max_depth=planning.max_depth,
            node_overhead=overhead,
            effort=planning.effort,  # type: ignore[arg-type]
            seed=planning.seed,
            cache=planning.cache,
        )
        for group in _group_signs(spec)
    )
    return BitslicedPlan(layout, trees)


def bitsliced_kernels(spec: BinarySpec, isa: Isa, plan: BitslicedPlan) -> LayerKernels:
    """The kernels of a planned layer.

    Raises:
        TreeError: a tree does not fit the weights (a corrupt cache, an edited module).
    """
    assert spec.geometry is not None
    layout, alphabet = plan.layout, alphabet_of(spec)
    signs = spec.binary_weights.signs
    _check_trees(_group_signs(spec), plan.trees)
    mapped = output_map(spec)
    trees = [_as_program_tree(tree) for tree in plan.trees]
    program = make_program(layout, trees)
    zero, corrected = zero_of(spec), needs_correction(spec)
    constants = bitsliced_conv2d_constants(layout, signs, zero_padded=corrected, zero=zero)
    parameters: dict[str, Any] = {"has_scale": mapped.scaled is not None, "has_bias": mapped.bias is not None}
    function = bitsliced_conv2d(layout, program, constants, isa=isa, **parameters)
    vectors = pack_node_vectors(layout, trees, program)
    expand = expand_program(layout, len(program.nodes), len(program.indices))
    indices = DerivedConstant(expand, (vectors, program.nodes), program.indices)
    tables: list[Constant] = [indices, program.nodes, program.first_rows]
    planes = make_bit_planes(layout, f"bit_planes_{alphabet}_{layout.lanes * WORD_BITS}")
    stages = (
        pack_kernel(spec, isa),
        Kernel(planes, (), layout.shape, "uint64"),
        Kernel(function, (*tables, *constants, *mapped.arguments), spec.output_shape, "float32"),
    )

    def bits_for(handover: Handover) -> tuple[Kernel, ...] | None:
        read = handover.reader.geometry
        if read is None:
            return None
        bounds = bitsliced_conv2d_bits_constants(
            layout, signs, handover.bounds, handover.inverted, zero_padded=corrected, zero=zero
        )
        count = bitsliced_conv2d_bits(layout, program, bounds, isa=isa).with_attr(PARTS_ATTR, [0, len(tables)])
        rows = (spec.out_channels, layout.words_per_row)
        masks = pool_masks(read, handover.joined_by_and)
        pad_bit = ring_code(handover.reader)
        pack = pack_bit_rows(layout, read, pad_bit=pad_bit, pool=handover.pool, masked=bool(masks))
        bits = conv_bits_shape(read, alphabet_of(handover.reader))
        return Kernel(count, (*tables, *bounds), rows, "uint64"), Kernel(pack, masks, bits, "uint64")

    def with_chain(chain: Chain) -> PrimFunc | None:
        if layout.geometry.batch > 1:
            return None
        return bitsliced_conv2d(layout, program, constants, isa=isa, chain=chain, **parameters)

    return LayerKernels("bitsliced", stages, mapped, bits_for, with_chain=with_chain)


def _layout(spec: BinarySpec, isa: Isa) -> PlaneLayout:
    assert spec.geometry is not None
    return make_layout(spec.geometry, alphabet_of(spec), isa)


def _group_signs(spec: BinarySpec) -> Array:
    """Signs bool [G, M, N]."""
    assert spec.geometry is not None
    return spec.binary_weights.signs.reshape(spec.geometry.groups, spec.geometry.group_out_channels, -1)


def _list_lengths(tree: SolvedTree) -> Array:
    """Planes that each node takes away and adds, int64 [nodes, 2]."""
    after = tree.vectors.astype(np.bool_)
    before = after[np.maximum(tree.parents, 0)]
    rooted = tree.parents < 0
    before[rooted] = np.array([root == "plus" for root in tree.roots])[rooted, None]
    return np.stack([(before & ~after).sum(axis=1), (after & ~before).sum(axis=1)], axis=1)


def _alphabet_lengths(layout: PlaneLayout, lengths: Array) -> Array:
    """Under three-valued activations a weight that differs is a plane in both lists; codes count lists once a bit."""
    if layout.plane_stride:
        return np.repeat(lengths.sum(axis=1, keepdims=True), 2, axis=1)
    return np.tile(lengths, (1, layout.levels))


def _check_trees(signs: Array, trees: tuple[SolvedTree, ...]) -> None:
    for group, (wanted, tree) in enumerate(zip(signs, trees, strict=True)):
        if not np.array_equal(tree.vectors[: tree.channels].astype(bool), wanted):
            raise TreeError(f"the channel tree of group {group} is of other weights than the layer's")


def _nearest_distances(signs: Array) -> float:
    """Sum over channels of the Hamming distance to the nearest other channel of the group, or root; bool [G, M, N]."""
    total = 0.0
    for group in signs:
        values = np.where(group, 1, -1).astype(np.float32)  # sums of less than 2^24 ones: exact
        distances = (values.shape[1] - values @ values.T) / 2
        np.fill_diagonal(distances, np.inf)
        plus = group.sum(axis=1)
        total += float(np.minimum(distances.min(axis=1), np.minimum(plus, group.shape[1] - plus)).sum())
    return total


def _as_program_tree(tree: SolvedTree) -> ChannelTree:
    parents = [
        int(parent) if parent >= 0 else (ALL_PLUS if root == "plus" else ALL_MINUS)
        for parent, root in zip(tree.parents, tree.roots, strict=True)
    ]
    return ChannelTree(tree.vectors.astype(bool), parents)
