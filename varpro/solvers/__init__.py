"""Solvers of the inner problem, one a file, each with the training epochs that it makes fast."""
