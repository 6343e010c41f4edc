"""All lowerings by domain and operator; each table stands with its operators' definitions in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import NodeProto

from .custom_operators import CUSTOM_LOWERINGS
from .deformable_convolution import DEFORMABLE_LOWERINGS
from .determinants import DETERMINANT_LOWERINGS
from .function_expansion import FUNCTION_LOWERINGS
from .microsoft_operators import MICROSOFT_LOWERINGS
from .node_emitter import Lowering
from .normalisation_operators import NORMALISATION_LOWERINGS, uses_statistics
from .quantisation_operators import QUANTISATION_LOWERINGS
from .quantised_products import PRODUCT_LOWERINGS
from .recurrent_operators import RECURRENT_LOWERINGS
from .reversed_sequences import SEQUENCE_LOWERINGS
from .selection_operators import SELECTION_LOWERINGS, puts_channels_first, uses_mask
from .signal_operators import SIGNAL_LOWERINGS
from .window_operators import WINDOW_LOWERINGS, has_output_shape, uses_positions

STANDARD_LOWERINGS: Mapping[str, Lowering] = {
    **DEFORMABLE_LOWERINGS,
    **DETERMINANT_LOWERINGS,
    **FUNCTION_LOWERINGS,
    **NORMALISATION_LOWERINGS,
    **PRODUCT_LOWERINGS,
    **QUANTISATION_LOWERINGS,
    **RECURRENT_LOWERINGS,
    **SELECTION_LOWERINGS,
    **SEQUENCE_LOWERINGS,
    **SIGNAL_LOWERINGS,
    **WINDOW_LOWERINGS,
}
"""Operators of the standard domain that become simpler ones of it, whatever TVM's importer makes of them."""

LOWERINGS: Mapping[str, Mapping[str, Lowering]] = {
    **CUSTOM_LOWERINGS,
    "": STANDARD_LOWERINGS,
    "com.microsoft": MICROSOFT_LOWERINGS,
}

LOWERED_FORMS: Mapping[str, Callable[[NodeProto], bool]] = {
    "Dropout": uses_mask,
    "LayerNormalization": uses_statistics,
    "MaxPool": uses_positions,
    "MaxUnpool": has_output_shape,
    "SpaceToDepth": puts_channels_first,
}
"""Standard operators of which some forms alone become simpler ones."""
