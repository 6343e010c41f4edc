"""The kernels of a recognised layer: which ones it gets, and the constants they take.

``kernel_choice`` decides, by ``cost_model`` or by measurement; ``popcount_layer`` and ``bitsliced_layer`` build them
from ``schedules``. See docs/kernel-choice.md.
"""
