"""Where the time of a compiled network goes: kernel by kernel, layer by layer, beside ONNX Runtime's own nodes.

``kernel_table`` says at compile time what each kernel computes, ``kernel_timing`` and ``onnxruntime_nodes`` measure,
``machine_peaks`` measures the machine, ``profile`` puts them together, ``html_report`` makes a page of it.
"""
