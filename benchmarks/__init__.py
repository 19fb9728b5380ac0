"""Measurements of speed and accuracy, apart from the tests: ``python -m benchmarks`` (or ``make bench``)."""
