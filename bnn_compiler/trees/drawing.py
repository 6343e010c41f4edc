"""A picture of a channel tree as SVG: roots left and depth to the right, or, for many channels, rings around the root.

Leaves are spread evenly, a parent stands in the middle of its children, the distance from the root is the depth. The
colour of an edge says how many planes it costs; every node tells its number, cost and depth when pointed at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bnn_compiler.plain_text import plain

from .channel_tree import IN_FULL, ChannelTree

_RING_FROM = 150
_ROW, _COLUMN = 15.0, 150.0
_RING_LABEL, _FIRST_RING = 12.0, 0.15
_MARGIN, _TOP = 60.0, 124.0
_SWATCH = 32
# Dark is dear: viridis, whose order survives printing in grey and colour blindness.
_COLOURS = ("#c8d435", "#7ad151", "#22a884", "#2a788e", "#414487", "#440154")
_CHANNEL, _SYNTHETIC = "#14507a", "#d9480f"
_ROOT_NAMES = {"minus": "all −1", "plus": "all +1", "full": "in full"}


@dataclass(frozen=True)
class _Layout:
    """Places in (depth, leaf number), the children of every node, and the leaves in order."""

    depth: dict[int, int]
    leaf: dict[int, float]
    children: dict[int, list[int]]
    leaves: int


def draw_tree(tree: ChannelTree, title: str = "channel tree") -> str:
    """The text of an SVG picture of ``tree``."""
    layout = _lay_out(tree)
    return (_draw_rings if tree.channels >= _RING_FROM else _draw_rows)(tree, layout, title)


def _lay_out(tree: ChannelTree) -> _Layout:
    roots = sorted(set(tree.roots) - {""})
    number = {root: -2 - at for at, root in enumerate(roots)}
    children: dict[int, list[int]] = {-1: [*number.values()], **{at: [] for at in number.values()}}
    children |= {node: [] for node in range(tree.parents.size)}
    for node, parent in enumerate(tree.parents.tolist()):
        children[parent if parent >= 0 else number[tree.roots[node]]].append(node)
    depth = {-1: 0, **dict.fromkeys(number.values(), 0)} | dict(enumerate(tree.depths.tolist()))
    size: dict[int, int] = {}
    for node in _from_leaves(children):
        size[node] = sum(size[child] for child in children[node]) or 1
        # Large subtrees last: the small ones then stand beside the root, where there is room.
        children[node].sort(key=lambda child: (size[child], child))
    leaf: dict[int, float] = {}
    leaves = 0
    for node in _from_leaves(children):
        below = children[node]
        leaf[node] = (leaf[below[0]] + leaf[below[-1]]) / 2 if below else float(leaves)
        leaves += not below
    return _Layout(depth, leaf, children, leaves)


def _from_leaves(children: dict[int, list[int]]) -> list[int]:
    """All nodes, children in order before their parents; without recursion, for trees may be thousands deep."""
    order, stack = [], [-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(children[node])
    return order[::-1]


def _draw_rows(tree: ChannelTree, layout: _Layout, title: str) -> str:
    width = 2 * _MARGIN + _COLUMN * tree.depth + 60
    height = _TOP + _ROW * layout.leaves + _MARGIN

    def place(depth: float, leaf: float) -> tuple[float, float]:
        return _MARGIN + 40 + _COLUMN * depth, _TOP + _ROW * (layout.leaves - leaf)

    def edge(parent: int, node: int) -> str:
        x0, y0 = place(layout.depth[parent], layout.leaf[parent])
        x1, y1 = place(layout.depth[node], layout.leaf[node])
        bend = x0 + 14
        return f"M{x0:.1f} {y0:.1f}H{bend:.1f}L{bend + 10:.1f} {y1:.1f}H{x1:.1f}"

    def cost_label(node: int, cost: int) -> str:
        x, y = place(layout.depth[node], layout.leaf[node])
        return f'<text x="{x - 10:.1f}" y="{y - 3:.1f}" class="cost">{cost}</text>'

    def label(node: int) -> str:
        x, y = place(layout.depth[node], layout.leaf[node])
        if layout.children[node]:
            return f'<text x="{x + 2:.1f}" y="{y - 7:.1f}">{node}</text>'
        return f'<text x="{x + 8:.1f}" y="{y + 4:.1f}">{node}</text>'

    guides = []
    for depth in range(tree.depth + 1):
        x, _ = place(depth, 0)
        guides.append(
            f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{height - _MARGIN / 2:.1f}" class="guide"/>'
            f'<text x="{x}" y="{_TOP - 10}" class="guide">depth {depth}</text>'
        )
    body = _edges(tree, layout, edge, cost_label) + _nodes(tree, layout, place, label)
    return _page(tree, title, max(width, 760), height, guides + body)


def _draw_rings(tree: ChannelTree, layout: _Layout, title: str) -> str:
    radius = max(_RING_LABEL * layout.leaves / (2 * math.pi), 80.0 * tree.depth)
    size = 2 * (radius + _MARGIN)
    centre = size / 2

    def polar(depth: float, leaf: float) -> tuple[float, float]:
        # The roots share the middle; the first ring is pulled in, as few nodes stand there.
        distance = radius * (_FIRST_RING + (1 - _FIRST_RING) * depth / tree.depth) if depth else radius * 0.03
        return distance, 2 * math.pi * (leaf + 0.5) / layout.leaves - math.pi / 2

    def place(depth: float, leaf: float) -> tuple[float, float]:
        distance, angle = polar(depth, leaf)
        return centre + distance * math.cos(angle), _TOP + centre + distance * math.sin(angle)

    def edge(parent: int, node: int) -> str:
        x0, y0 = place(layout.depth[parent], layout.leaf[parent])
        x1, y1 = place(layout.depth[node], layout.leaf[node])
        near, far = polar(layout.depth[parent], layout.leaf[parent]), polar(layout.depth[node], layout.leaf[node])
        middle = (near[0] + far[0]) / 2
        ax, ay = centre + middle * math.cos(near[1]), _TOP + centre + middle * math.sin(near[1])
        bx, by = centre + middle * math.cos(far[1]), _TOP + centre + middle * math.sin(far[1])
        return f"M{x0:.1f} {y0:.1f}C{ax:.1f} {ay:.1f} {bx:.1f} {by:.1f} {x1:.1f} {y1:.1f}"

    def label(node: int) -> str:
        x, y = place(layout.depth[node], layout.leaf[node])
        turn = math.degrees(polar(layout.depth[node], layout.leaf[node])[1])
        back = 90 < turn % 360 < 270
        anchor, shift = ("end", -7) if back else ("start", 7)
        turn += 180 if back else 0
        return (
            f'<text transform="translate({x:.1f} {y:.1f}) rotate({turn:.1f})" x="{shift}" y="3.5" '
            f'text-anchor="{anchor}">{node}</text>'
        )

    guides = []
    for depth in range(1, tree.depth + 1):
        distance, _ = polar(depth, 0)
        guides.append(
            f'<circle cx="{centre:.1f}" cy="{_TOP + centre:.1f}" r="{distance:.1f}" class="guide"/>'
            f'<text x="{centre:.1f}" y="{_TOP + centre - distance - 3:.1f}" class="guide">depth {depth}</text>'
        )
    body = _edges(tree, layout, edge, lambda _node, _cost: "") + _nodes(tree, layout, place, label)
    return _page(tree, title, size, _TOP + size, guides + body)


def _edges(
    tree: ChannelTree, layout: _Layout, path: Callable[[int, int], str], label: Callable[[int, int], str]
) -> list[str]:
    costs = tree.edge_costs.tolist()
    low, high = _cost_range(tree)
    # Dear edges are drawn last, on top.
    pairs = [(parent, node) for parent, below in layout.children.items() if parent != -1 for node in below]
    parts = []
    for parent, node in sorted(pairs, key=lambda pair: costs[pair[1]]):
        step = int((costs[node] - low) / (high - low + 1) * len(_COLOURS))
        dash = ' stroke-dasharray="4 3"' if tree.negated[node] else ""
        parts.append(
            f'<path d="{path(parent, node)}" stroke="{_COLOURS[max(step, 0)]}"{dash}/>{label(node, costs[node])}'
        )
    return parts


def _nodes(
    tree: ChannelTree,
    layout: _Layout,
    place: Callable[[float, float], tuple[float, float]],
    label: Callable[[int], str],
) -> list[str]:
    costs, parts = tree.edge_costs.tolist(), []
    for node, depth in layout.depth.items():
        x, y = place(depth, layout.leaf[node])
        if node == -1:
            continue
        if node < -1:
            name = _ROOT_NAMES[sorted(set(tree.roots) - {""})[-2 - node]]
            parts.append(
                f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
                f'<text x="{x:.1f}" y="{y - 9:.1f}" class="root">{name}</text>'
            )
            continue
        synthetic = node >= tree.channels
        kind, size = ("synthetic", 2.6) if synthetic else ("channel", 4)
        what = f"{'synthetic node' if synthetic else 'channel'} {node}: {costs[node]} planes, depth {depth}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" class="{kind}"><title>{what}</title></circle>'
            + ("" if synthetic else label(node))
        )
    return parts


def _cost_range(tree: ChannelTree) -> tuple[int, int]:
    costs = sorted(tree.edge_costs.tolist())
    return costs[0], costs[-1]


def _page(tree: ChannelTree, title: str, width: float, height: float, body: list[str]) -> str:
    low, high = _cost_range(tree)
    scale = "".join(
        f'<rect x="{20 + _SWATCH * at}" y="62" width="{_SWATCH}" height="9" fill="{colour}"/>'
        for at, colour in enumerate(_COLOURS)
    )
    end = 20 + _SWATCH * len(_COLOURS)
    overhead = "" if not tree.synthetic_nodes else f" + {tree.node_overhead:g} × {tree.synthetic_nodes} synthetic nodes"
    full = "" if IN_FULL not in tree.roots else ", one channel computed in full"
    summary = (
        f"{tree.channels} channels of {tree.vectors.shape[1]} weights, depth {tree.depth}{full}: "
        f"{tree.edge_cost:,} planes{overhead} = {tree.ratio:.3f} of computing every channel in full"
    )
    legend = (
        f'{scale}<text x="20" y="84" class="legend">{low:,}</text>'
        f'<text x="{end}" y="84" class="legend" text-anchor="end">{high:,} planes per edge</text>'
        f'<circle cx="{end + 30}" cy="67" r="4" class="channel"/>'
        f'<text x="{end + 40}" y="71" class="legend">channel</text>'
        f'<circle cx="{end + 104}" cy="67" r="2.6" class="synthetic"/>'
        f'<text x="{end + 112}" y="71" class="legend">synthetic node</text>'
        f'<rect x="{end + 208}" y="62" width="10" height="10"/><text x="{end + 224}" y="71" class="legend">root</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="sans-serif" font-size="10">\n'
        "<style>path{fill:none;stroke-width:1.3}.guide{fill:none;stroke:#e4e4e4}"
        "text.guide{fill:#999;stroke:none;text-anchor:middle}"
        f".channel{{fill:{_CHANNEL}}}.synthetic{{fill:#fff;stroke:{_SYNTHETIC};stroke-width:1.2}}"
        ".cost{font-size:8px;fill:#777;text-anchor:end}.legend{font-size:11px;fill:#444}"
        ".root{font-weight:bold;font-size:11px;text-anchor:middle}</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="20" y="28" font-size="17" font-weight="bold">{escape(plain(title, 200))}</text>'
        f'<text x="20" y="48" font-size="12" fill="#444">{escape(summary)}</text>{legend}\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )
