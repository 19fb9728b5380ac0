"""The figures of the paper, drawn from result files alone; the notebooks call ``publish`` of one of its parts."""
