"""How large a model may be.

A file of a few kilobytes can describe a network of any size, and code generators are recursive, and not linear in all
things. So what a compilation takes is bounded by what the model holds, each limit far above any network in use, and is
refused before it is begun. Whoever has a larger network raises the limit: ``--limits nodes=100000,memory=16GiB``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace

from bnn_compiler.errors import ModelError, UsageError

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_NUMBER = re.compile(r"(\d{1,18})(KiB|MiB|GiB|TiB|)")


@dataclass(frozen=True)
class Limits:
    """What is beyond is refused.

    - ``nodes``: of the network that is compiled, constants folded and loops written out. The file may hold five
      times as many.
    - ``operands``: inputs, or outputs, of one node.
    - ``inputs``, ``outputs``: of the network.
    - ``constants``: initialisers of the file.
    - ``layers``: convolutions and matrix products of the network; binary ones take the most time to compile.
    - ``name``: characters of one name (of a node, a tensor, an operator).
    - ``memory``: bytes of the tensors that are alive together in the network, and of all constants that are computed
      beyond eight times what the file stores.
    - ``work``: multiplications and additions of one run of the network.
    """

    nodes: int = 15_000
    operands: int = 256
    inputs: int = 256
    outputs: int = 256
    constants: int = 50_000
    layers: int = 1_000
    name: int = 10_000
    memory: int = 2 << 30
    work: int = 10**12

    def __post_init__(self) -> None:
        """Refuse what is no limit.

        Raises:
            UsageError: a limit is not a positive whole number.
        """
        for name, value in self.by_name().items():
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"the limit {name} must be a whole number above 0, not {value!r}")

    @classmethod
    def parse(cls, text: str) -> Limits:
        """The limits of ``nodes=100000,memory=16GiB``; those that are not named stay.

        Raises:
            UsageError: the text is not of this form, or names something else.
        """
        chosen: dict[str, int] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition("=")
            found = _NUMBER.fullmatch(number.replace("_", ""))
            if name not in cls.by_name(cls()) or found is None:
                raise UsageError(
                    f"the limit {part.strip()[:60]!r} is not of the form nodes=100000 or memory=16GiB "
                    f"(limits: {', '.join(cls.by_name(cls()))})"
                )
            chosen[name] = int(found[1]) * _UNITS[found[2]]
        return replace(cls(), **chosen)

    def by_name(self) -> dict[str, int]:
        """All limits."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def file_nodes(self) -> int:
        """Nodes that a file may hold: many are constants, and sizes that are computed from sizes."""
        return 5 * self.nodes

    def require(self, limit: str, found: int, what: str, allowed: int | None = None) -> None:
        """Compare ``found`` with a limit (or what follows from it, ``allowed``); ``what`` says what was counted.

        Raises:
            ModelError: it is more.
        """
        most = self.by_name()[limit] if allowed is None else allowed
        if found <= most:
            return
        needed = -(-found * self.by_name()[limit] // most)
        shown = show_bytes if limit == "memory" else str
        value = f"{-(-needed >> 30)}GiB" if limit == "memory" else needed
        raise ModelError(f"{what}, more than the limit of {shown(most)}: --limits {limit}={value} raises it")


def show_bytes(size: int) -> str:
    """For people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


DEFAULT_LIMITS = Limits()
