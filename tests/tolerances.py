"""The one table of tolerances. Each is for float64 unless its name says otherwise, and says why it is what it is."""

import torch

EXACT = 1e-12  # the same formula in another order of operations, quantities of size 1
SOLVE = 1e-10  # two ways to a ridge solution: round-off times a condition number of 1e4 or so
TRAJECTORY = 1e-9  # weights of two solvers after 300 epochs
PREDICTION = 1e-9  # relative rms error of predictions against extended precision, lambda >= 1e-6
GRADIENT = 1e-7  # against central differences: their own error at the step that balances it
FLOAT32 = 2e-4  # float32 solves against float64, relative, lambda 1e-3
PINNED = 1e-6  # float32 draws written with seven digits
PUBLISHED = 1e-3  # relative, our six-seed means against the published curves (median over vertices)
PUBLISHED_TORUS = 1e-2  # the same on the torus, where the narrowest student has an unstable start in float32
QUADRATURE = 1e-10  # integrals of smooth periodic functions

DIFFUSION = {
    "law": 1e-12,  # relative; the same closed forms in another order
    "law slope": 1e-8,  # relative to the steepest slope; central differences
    "mass": 1e-12,  # round-off of a sum of 4096 cells
    "stationary": 1e-10,  # relative; a difference of two cdfs of size 1 over a cell of mass 1e-5 and more
    "linear solve": 1e-6,  # relative; the dense matrix comes from finite differences
    "converged": 1e-9,  # L1, after 200 and more decay times; far below the default rtol
    "finite volumes": 3e-6,  # L1; the solver at rtol 1e-7 leaves 1e-6, the extrapolated finite volumes less
    "restart": 1e-4,  # L1; two runs with different steps, each with an error of 2e-5
    "decay rate": 1e-3,  # relative; the start is 1e-3 from linear
    "published": 2e-3,  # relative; the published curves are as far (1e-3) from converged finite volumes
}

SHAMPOO = {
    "oracle": 1e-9,  # relative, after 10 steps; P has a condition number of 1e6 where few gradients have been seen
    "float32 parameters": 1e-3,  # relative; gradients rounded to float32, condition numbers up to 1e8
    "closed form": 1e-11,  # round-off of P times the largest power of its eigenvalues, 1e4
    "rotation": 1e-9,  # as "oracle", after 8 steps
}

RESNET = {
    "definition": 1e-12,  # features of size 1 after 19 convolutions in another order of operations
    "gradient": 1e-5,  # relative, against central differences of step 1e-7: their round-off, and kinks between
    "digits": 1e-11,  # mean and standard deviation of 1.5 million pixels, summed in another order (2e-12 in one thread)
}

RESNET_TRAINING = {
    "gradient": 1e-6,  # relative; central differences across the kinks of ReLU, about 1e-7
    "trajectory": 1e-9,  # relative, 9 steps in float64 against literal ones; batch-norm magnifies round-off
    "fit in evaluation mode": 1e-6,  # relative; after 6 steps those features are of size 1e4: condition number 2e9
    "statistics": 1e-12,  # one mean and one variance in another order
    "bfloat16": 5e-2,  # relative; 8 bits through 19 layers
}

LOSS = {
    "gradient": 1e-8,  # relative; central differences of step 1e-5: 1e-10 of it, and round-off over the step
    "float32 features": 1e-5,  # relative; u in float64, features and gradient rounded to float32
    "risk of a perfect fit": {torch.float32: 1e-8, torch.float64: 1e-24},  # round-off squared, over 2 lambda = 2e-6
}
