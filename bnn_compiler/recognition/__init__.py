"""Recognition: which convolutions and products are binary, in whatever spelling, and what exactly they compute.

``matching`` asks the questions; ``value_sets`` knows which values a tensor can take; ``binarizers`` says which
comparison makes a bit; ``canonical_form`` writes the layer down. See docs/recognition.md.
"""
