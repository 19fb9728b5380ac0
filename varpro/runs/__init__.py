"""From options to a result file: what a run is, its training, its record."""
