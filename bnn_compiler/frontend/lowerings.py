"""All lowerings by domain and operator; each table stands with its operators' definitions in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping

from .custom_operators import CUSTOM_LOWERINGS
from .function_expansion import FUNCTION_LOWERINGS
from .node_emitter import Lowering
from .quantisation_operators import QUANTISATION_LOWERINGS
from .recurrent_operators import RECURRENT_LOWERINGS

STANDARD_LOWERINGS: Mapping[str, Lowering] = {**FUNCTION_LOWERINGS, **QUANTISATION_LOWERINGS, **RECURRENT_LOWERINGS}
"""Operators of the standard domain that become simpler ones of it, whatever TVM's importer makes of them."""

LOWERINGS: Mapping[str, Mapping[str, Lowering]] = {**CUSTOM_LOWERINGS, "": STANDARD_LOWERINGS}
