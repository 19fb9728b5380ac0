"""Variable-projection (VarPro) and two-timescale training of two-layer neural networks.

One alphabet everywhere: N samples, M neurons (student width), T teacher neurons, S snapshots, d input
dimension; ``inputs (N, d)``, ``targets (N, k)``, ``weights (M, d)``, ``outer (M, k)``, ``features (N, M)``,
``lmbda`` the regularisation strength, ``centre`` the penalty centre (0 biased, 1 unbiased).

Source: R. Barboni, G. Peyré, F.-X. Vialard, "Ultra-fast feature learning for the training of two-layer
neural networks in the two-timescale regime", arXiv 2504.18208.
"""
