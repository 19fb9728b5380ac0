"""The one table of tolerances. Each is for float64 unless its name says otherwise, and says why it is what it is."""

from headroom import watched

EXACT = 1e-12  # the same formula in another order of operations, quantities of size 1
SOLVE = 1e-10  # two ways to a ridge solution: round-off times a condition number of 1e4 or so
TRAJECTORY = 1e-9  # weights of two solvers after 300 epochs
PREDICTION = 1e-9  # relative rms error of predictions against extended precision, lambda >= 1e-6
GRADIENT = 1e-7  # against central differences: their own error at the step that balances it
FLOAT32 = 6e-4  # float32 solves against float64, relative, lambda 1e-3; features to 2e-7, a growth of 300, a factor 10
PINNED = 4e-6  # float32 draws up to 4, whose logarithm and cosine may be off by a unit or two of 2.4e-7
PUBLISHED = 1e-3  # relative, our six-seed means against the published curves (median over vertices)
PUBLISHED_TORUS = 1e-2  # the same on the torus, where the narrowest student has an unstable start in float32
BOUND = 1.0  # the error over the bound that the solver states
QUADRATURE = 1e-10  # integrals of smooth periodic functions
FOLLOWS = 1e-8  # two runs of 50 epochs whose inner solves leave relative residuals of up to 1e-10 each
OUTER = 1e-6  # outer weights after such solves: a residual of 1e-10 times a condition number of 1e4
TINY_LOSS = 1e-6  # relative; a loss of 1e-14 from residuals of 1e-7, whose own round-off is 1e-16
ROUNDED = 1.2e-7  # one unit of float32: what two ways give nearly alike may round to neighbours when it is kept
FLOAT32_STATE = 1e-6  # what rounding a state to float32 changes in its loss and distance
PRINTED = 1e-5  # relative; numbers read from the published curves
WRAPPED = 1e-6  # relative; float32 losses where the inputs are a million periods away, known to 1e-10
GRID = 1e-6  # error of a sum over 4096 points of the circle, of order 1 / 4096^2
SEQUENCE = 3e-3  # discrepancy of 4096 points of the golden sequence
CURVE = 2e-3  # relative; the abscissa of a published curve is read to 1e-6, steepest at gamma 1000

SHORT_STEP = 1e-5  # relative; a step of 1e-8 out of differences of size 1, which leave 1e-16, and its own square
SYNTHETIC = 0.02  # relative; the standard deviation of 215040 drawn pixels, 1e-3; seeded

CARRIED_ON_TORUS = 1e-5  # relative, a float64 run of 150 epochs that was killed: inner solves to 1e-10, times a growth

GROWN = {  # two runs, times the growth of a small change of the start, which the test measures (1 to 5000)
    "carried on": 5e-12,  # inner solves to 1e-13, times a condition number of 800: 8e-11 at worst, 2e-13 seen
    "float64": 3e-10,  # inner solves to 5e-11, in the same way
    "float32": 2e-5,  # features to 2e-7 of the largest, in the same way
}
RESIDUAL = {"float32": 1e-6, "float64": 1e-10}  # |b - A u| / |b|, promised; the solvers stop at half of it
FEATURE = {"float32": 4e-6, "float64": 1e-14}  # relative to max g; rounding of w - x and of g
EXPONENTIAL = {"float32": 2e-7, "float64": 1e-15}  # relative; 7.4e-8 (1.3e-16) of the last sum, less of all before

DIFFUSION = {
    "rounding": 1e-14,  # a few operations on numbers of size 1
    "1024 nodes": 1e-3,  # L1; second order, gamma = 100
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

TORUS_DIFFUSION = {
    "linear solve": 1e-10,  # relative; the residual asked for is 1e-12, condition numbers up to 1e2
    "average": 1e-10,  # relative; Gauss quadrature of the law over cells, differences of cdfs of size 1
    "mass": 1e-12,  # round-off of a sum of 4096 cells
    "stationary": 1e-10,  # relative; round-off of the start, the same in every step
    "symmetric": 1e-6,  # relative; linear solves stop at other residuals where red cells are others (rtol 1e-6)
    "converged": 1e-10,  # L1, after 200 units of time; what a few very long L-stable steps leave
    "circle": 1e-3,  # L1; both solvers' errors in time and space, about 1e-4
    "decay rate": 3e-3,  # relative; the start is 1e-3 from linear, and 3e-4 is seen
    "stiff reference": 3e-5,  # L1; rtol 1e-7 leaves 3e-6, the reference less
    "restart": 5e-5,  # L1; two runs with different steps, 3e-6 apart
    "potential": 1e-6,  # distances of size 1; what is asked for, and the direct sum itself is good to 1e-7
    "stage": 1e-9,  # over the length of the stage; Newton is asked for a residual of 1e-13
    "second order": 1e-3,  # L1 at 32 x 32 cells, gamma = 3
    "fourth order": 1e-5,  # distances of size 1 by 16 x 16 cells, an eighth of them
    "time": 0.1,  # L1 over rtol^(2/3), as docs/diffusion_2d.md says in section 6; 0.05 to 0.064 at rtol 1e-4 to 1e-6
    "law": 1e-11,  # distances of size 1 by Fourier transforms: a closed form over a cell's area loses 4 digits
    "between snapshots": 3e-4,  # distances of size 1; cubics through 24 of 201 densities
}

SHAMPOO = {
    "oracle": 1e-8,  # relative, after 10 steps; round-off times the condition number of P, 1e6 where few gradients have
    # been seen, is 1e-10 in each of two roots; changes of the gradients grow five hundredfold
    "float32 parameters": 1e-3,  # relative; gradients rounded to float32, condition numbers up to 1e8
    "closed form": 1e-11,  # round-off of P times the largest power of its eigenvalues, 1e4
    "rotation": 1e-9,  # after 8 steps; P is well conditioned there
}

RESNET = {
    "definition": 1e-12,  # features of size 1 after 19 convolutions in another order of operations
    "gradient": 1e-5,  # relative, against central differences of step 1e-7: their round-off, and kinks between
    "digits": 3e-11,  # mean and standard deviation of 1.5 million pixels, summed in another order (2e-12 in one thread)
}

RESNET_TRAINING = {
    "gradient": 1e-6,  # relative; central differences across the kinks of ReLU, about 1e-7
    "trajectory": 1e-9,  # relative, 9 steps in float64 against literal ones; batch-norm magnifies round-off
    "fit in evaluation mode": 2e-6,  # relative; after 6 steps those features are of size 1e4: condition number 2e9
    "statistics": 1e-12,  # one mean and one variance in another order
    "bfloat16": 5e-2,  # relative; 8 bits through 19 layers
}

POPULATION = {
    "quadrature": 1e-6,  # O(1 / N^2) of 65536 inputs over lambda
    "midpoints": 1e-6,  # O(1 / T^2) of 65536 neurons over lambda
    "rate": 0.08,  # of a slope fitted to 12 draws at three sizes, standard deviation 0.03; seeded
    "tiny risk": 1e-4,  # residuals of 1e-9 with an error of 1e-16 each, relative
}

PROJECTED = {
    "derivatives": 1e-6,  # relative to the largest; central differences of step 1e-6
    "linear solve": 1e-10,  # two factorisations of a matrix with condition number 1e4 or so
    "mass": 1e-11,  # differences of a cdf of size 2 over cells of mass 1e-2 and more
    "harmonics": 2e-4,  # second order on 1024 cells
    "turned": 1e-10,  # L1; the same scheme cut elsewhere, round-off after a few hundred steps
    "stationary": 1e-3,  # L1; second order on 256 cells
    "hidden": 1e-6,  # the energy of what the features do not see, by cells: second order on 64 and more
    "end": 3e-4,  # second order on 256 cells
    "plain": 2e-3,  # L1; two schemes, second order on 256 and 128 cells
    "same teacher": 1e-4,  # L1; splines through 512 values
}

NEWTON = {
    "rounding": 4e-15,  # over lambda times the damping: a step's error where its computed bound is round-off
    "refined": 1e-6,  # relative, a step whose energy error is 1e-8, condition number 1e4
    "step": 1e-9,  # relative, in the energy norm; the factor alone at lambda 1e-3
    "outer": 1e-11,  # u of the training against u solved anew; round-off times a condition number of 1e4
    "risk": 1e-9,  # the same for the risk
    "zero risk": 1e-16,  # where the teacher can be reached exactly; rounding leaves (1e-15)^2 / lambda
    "found": 1e-9,  # radians from such a teacher
    "trajectory": 1e-8,  # two ways to six steps; round-off times a condition number of 1e5
    "matrix": 1e-11,  # relative; Kaufman's matrix by two ways of eliminating u, condition number 1e4
    "oracle": 1e-6,  # relative; the risk after inner solves by conjugate gradients to 1e-10
    "least risk": 1e-16,  # as "zero risk", by any solver; theirs leave 1e-10 of residuals of 1e-2
    "all found": 1e-7,  # as "found", at such a risk
}

LOSS = {
    "gradient": 1e-8,  # relative; central differences of step 1e-5: 1e-10 of it, and round-off over the step
    "float32 features": 2e-5,  # relative; u in float64, features and gradient rounded to float32
    "perfect fit float32": 1e-8,  # round-off squared, over 2 lambda = 2e-6
    "perfect fit float64": 1e-24,
}

KERNEL = 1e-4  # relative; harmonics of a kernel by a sum over points, whose error grows with the harmonic

FUSED = {  # two epochs by Triton kernels and by tensors, relative to the largest
    "float32": 1e-5,  # features to 2e-7, times a condition number; 8e-7 seen
    "float64": 1e-12,  # the same with 2e-16
}

CUDA = {  # a GPU against float64 on the CPU
    "float32": 1e-5,  # relative; 2e-7 seen on a CPU, 6e-7 with features off by 1e-6; TF32 would be off by 3e-5
    "float64": 1e-7,  # inner solves to 1e-10, grown over 30 epochs
    "captured": 1e-6,  # seven float64 steps whose sums may be in another order; batch-norm magnifies round-off
    "captured bfloat16": 1e-1,  # the same with 8 bits
    "resnet": 1e-7,  # three steps in float64; other algorithms of convolutions, batch-norm magnifies round-off
}

EXTENSION = 1e-9  # relative, 40 epochs of a dense float64 run against a literal loop: round-off

FIGURE = {
    "mode": 0.05,  # relative; the density in the cell of a mode, up to half a cell from it, against the largest
}

STUDY = {
    "power": 1e-9,  # a fitted exponent of an exact power: round-off of logarithms
    "eigenvalue": 1e-4,  # relative; 256 features for the circle, 4096 samples for all: both of second order
    "quantile": 4e-6,  # relative; half a unit in the last digit of 12.7062, Student's t of one degree of freedom
    "printed": 1e-4,  # a unit in the last of four decimals
    "gap": 1e-7,  # of a measure from itself: the root of round-off
    "growth": 1e-9,  # relative; of an exact geometric sequence: round-off of the loss that it is added to
    "growth of a run": 3e-3,  # relative; other modes of the error have not all died out
}

# Errors that round-off does not make: of a grid, of published numbers, what a solver itself stops at, a sharp bound.
# They are nearly the same on every machine, and need no factor 10.
METHOD = [
    "KERNEL",
    "BOUND",
    "CURVE",
    "FIGURE mode",
    "GRID",
    "PRINTED",
    "PROJECTED hidden",
    "POPULATION midpoints",
    "POPULATION quadrature",
    "POPULATION rate",
    "PROJECTED derivatives",
    "PROJECTED end",
    "PROJECTED harmonics",
    "PROJECTED plain",
    "PROJECTED same teacher",
    "PROJECTED stationary",
    "PUBLISHED_TORUS",
    "SEQUENCE",
    "ROUNDED",
    "SYNTHETIC",
    "STUDY eigenvalue",
    "STUDY growth of a run",
    "STUDY printed",
    "STUDY quantile",
    "TORUS_DIFFUSION fourth order",
    "TORUS_DIFFUSION potential",
    "TORUS_DIFFUSION second order",
    "TORUS_DIFFUSION time",
    "DIFFUSION 1024 nodes",
    "DIFFUSION decay rate",
    "DIFFUSION finite volumes",
    "DIFFUSION law slope",
    "DIFFUSION published",
    "DIFFUSION restart",
    "EXPONENTIAL float32",
    "EXPONENTIAL float64",
    "RESIDUAL float32",
    "RESIDUAL float64",
]

watched(globals(), exempt=METHOD)  # each entry remembers what it is compared with: see headroom.py
