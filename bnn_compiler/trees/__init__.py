"""Channel trees: the cheapest way to compute all output channels of a binary layer from one another."""
