"""Limits of the training dynamics: ultra-fast diffusions, one domain a file."""
