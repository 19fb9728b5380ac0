"""The one table of tolerances. Each is for float64 unless its name says otherwise, and says why it is what it is."""

EXACT = 1e-12  # the same formula in another order of operations, quantities of size 1
SOLVE = 1e-10  # two ways to a ridge solution: round-off times a condition number of 1e4 or so
TRAJECTORY = 1e-9  # weights of two routes after 300 epochs
PREDICTION = 1e-9  # relative rms error of predictions against extended precision, lambda >= 1e-6
GRADIENT = 1e-7  # against central differences: their own error at the step that balances it
FLOAT32 = 2e-4  # float32 solves against float64, relative, lambda 1e-3
PINNED = 1e-6  # float32 draws written with seven digits
PUBLISHED = 1e-3  # relative, our six-seed means against the published curves (median over vertices)
QUADRATURE = 1e-10  # integrals of smooth periodic functions
