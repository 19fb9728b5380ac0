"""Diffusion equations on a periodic square grid, solved by conjugate gradients with a multigrid preconditioner.

The matrix is K = diag(shift) + A, shift > 0, with A the five-point flux operator on n x n cells,

    (A u)_ij = a_ij (u_ij - u_i-1,j) - a_i+1,j (u_i+1,j - u_ij) + the same along j,

whose face coefficients are positive and contain 1/h^2. K is symmetric positive definite. One symmetric V-cycle
preconditions: red-black Gauss-Seidel before (red, black) and after (black, red), bilinear interpolation P between
cell centres, restriction P^T / 4, coarse operators of the same five-point form whose face coefficients are means of
the fine ones on the same face, and a Cholesky factor on the coarsest grid. With another coarse operator than
P^T K P / 4 the V-cycle is still a symmetric positive definite matrix, which is all that conjugate gradients ask of it.

Work and memory are linear in the cells. All of it runs in one thread, so results do not depend on their number.
"""

from typing import NamedTuple

import numpy as np

from varpro.compiled import compiled

COARSEST = 15  # cells per side: the largest grid that is not halved any more
SMALLEST_HALVED = 6  # cells per side: a smaller grid goes to the Cholesky factor, also where it is even
SHIFT, INVERSE, RIGHT_SIDE, SOLUTION, DIRECTION, IMAGE = range(6)  # rows of Grids.work; 1 / diagonal is INVERSE


class Grids(NamedTuple):
    """Face coefficients on all grids, the finest first, each flattened after the one before it.

    ``sizes (L,)`` cells per side; ``begins (L + 1,)``, where grid l has the entries ``begins[l]`` to
    ``begins[l + 1]``; ``below`` and ``left``: coefficient of the face between cell (i, j) and cell (i - 1, j), or
    (i, j - 1).
    """

    sizes: np.ndarray
    begins: np.ndarray
    below: np.ndarray
    left: np.ndarray
    work: np.ndarray


def grid_sizes(size: int) -> list[int]:
    """Cells per side of all grids below one of ``size`` cells per side.

    Raises ValueError where ``size`` is not an odd number up to 15 times a power of two.
    """
    sizes = [size]
    while sizes[-1] % 2 == 0 and sizes[-1] >= SMALLEST_HALVED:
        sizes.append(sizes[-1] // 2)
    if sizes[-1] > COARSEST:
        raise ValueError(
            f"grid_size must be an odd number up to {COARSEST} times a power of two (64, 96, 128, ...), not {size}"
        )
    return sizes


def make_grids(below: np.ndarray, left: np.ndarray) -> Grids:
    """All grids from the face coefficients (n, n) of the finest, which contain 1/h^2; see :class:`Grids`."""
    sizes = grid_sizes(len(below))
    all_below, all_left = [below], [left]
    for _ in sizes[1:]:
        below, left = below[::2], left[:, ::2]  # the faces that the coarse grid has, too
        below, left = (below[:, ::2] + below[:, 1::2]) / 8, (left[::2] + left[1::2]) / 8  # mean, and 1/h^2 is 1/4
        all_below.append(below)
        all_left.append(left)
    begins = np.concatenate([[0], np.cumsum(np.square(sizes))])
    return Grids(
        np.array(sizes),
        begins,
        np.concatenate([array.ravel() for array in all_below]),
        np.concatenate([array.ravel() for array in all_left]),
        np.zeros((6, begins[-1])),
    )


@compiled()
def apply_fluxes(below: np.ndarray, left: np.ndarray, u: np.ndarray, out: np.ndarray) -> None:
    """out <- A u, all (n, n). Each flux is computed alike for both of its cells, so that A u sums to round-off."""
    for i in range(u.shape[0]):
        _flux_row(below, left, u, i, out[i])


@compiled(inline="always")
def _flux_row(below: np.ndarray, left: np.ndarray, u: np.ndarray, i: int, out: np.ndarray) -> None:
    """out (n,) <- row i of A u."""
    n = u.shape[0]
    before, after = i - 1 if i > 0 else n - 1, i + 1 if i < n - 1 else 0
    for j in range(1, n - 1):
        centre = u[i, j]
        along = below[i, j] * (centre - u[before, j]) - below[after, j] * (u[after, j] - centre)
        out[j] = along + (left[i, j] * (centre - u[i, j - 1]) - left[i, j + 1] * (u[i, j + 1] - centre))
    for j in (0, n - 1):
        centre = u[i, j]
        previous, following = j - 1 if j > 0 else n - 1, j + 1 if j < n - 1 else 0
        along = below[i, j] * (centre - u[before, j]) - below[after, j] * (u[after, j] - centre)
        out[j] = along + (left[i, j] * (centre - u[i, previous]) - left[i, following] * (u[i, following] - centre))


@compiled()
def solve_shifted(
    grids: Grids, shift: np.ndarray, right: np.ndarray, tolerance: float, max_iterations: int
) -> tuple[np.ndarray, int]:
    """u (n, n) with sum |right - K u| <= ``tolerance`` for K = diag(``shift (n, n)``) + A, and the iterations taken.

    At most ``max_iterations``: what is then left is as it is. Overwrites ``grids.work``.
    """
    n = right.shape[0]
    below, left = _square(grids.below, 0, n), _square(grids.left, 0, n)
    residual, z = _square(grids.work[RIGHT_SIDE], 0, n), _square(grids.work[SOLUTION], 0, n)
    direction, image = _square(grids.work[DIRECTION], 0, n), _square(grids.work[IMAGE], 0, n)
    u = np.zeros((n, n))
    size = 0.0
    for i in range(n):
        row = 0.0
        for j in range(n):
            residual[i, j] = right[i, j]
            row += abs(right[i, j])
        size += row
    if size <= tolerance:
        return u, 0
    factor = _prepare(grids, shift)
    old_product, iterations = 1.0, 0
    while iterations < max_iterations and size > tolerance:
        _v_cycle(grids, factor)
        product = 0.0
        for i in range(n):
            row = 0.0
            for j in range(n):
                row += residual[i, j] * z[i, j]
            product += row
        ratio = product / old_product
        for i in range(n):
            for j in range(n):
                direction[i, j] = z[i, j] + ratio * direction[i, j] if iterations > 0 else z[i, j]
        apply_fluxes(below, left, direction, image)
        curvature = 0.0
        for i in range(n):
            row = 0.0
            for j in range(n):
                image[i, j] += shift[i, j] * direction[i, j]
                row += image[i, j] * direction[i, j]
            curvature += row
        length = product / curvature
        size = 0.0
        for i in range(n):
            row = 0.0
            for j in range(n):
                u[i, j] += length * direction[i, j]
                residual[i, j] -= length * image[i, j]
                row += abs(residual[i, j])
            size += row
        old_product = product
        iterations += 1
    return u, iterations


@compiled()
def _square(flat: np.ndarray, begin: int, n: int) -> np.ndarray:
    """The grid of n x n cells that begins at entry ``begin``, a view."""
    return flat[begin : begin + n * n].reshape(n, n)


@compiled()
def _prepare(grids: Grids, shift: np.ndarray) -> np.ndarray:
    """L of the coarsest matrix L L^T; the shifts and 1 / diagonal of all grids go to ``grids.work``."""
    for level in range(grids.sizes.size):
        n, begin = grids.sizes[level], grids.begins[level]
        here = _square(grids.work[SHIFT], begin, n)
        if level == 0:
            here[:] = shift
        else:
            fine = _square(grids.work[SHIFT], grids.begins[level - 1], 2 * n)
            for i in range(n):
                for j in range(n):
                    pair = fine[2 * i, 2 * j] + fine[2 * i, 2 * j + 1]
                    here[i, j] = (pair + fine[2 * i + 1, 2 * j] + fine[2 * i + 1, 2 * j + 1]) / 4
        below, left = _square(grids.below, begin, n), _square(grids.left, begin, n)
        inverse = _square(grids.work[INVERSE], begin, n)
        for i in range(n):
            after = i + 1 if i < n - 1 else 0
            for j in range(n):
                following = j + 1 if j < n - 1 else 0
                inverse[i, j] = 1 / (here[i, j] + below[i, j] + below[after, j] + left[i, j] + left[i, following])
    begin = grids.begins[grids.sizes.size - 1]
    return _cholesky(_dense(n, grids.work[SHIFT, begin:], grids.below[begin:], grids.left[begin:]))


@compiled()
def _dense(n: int, shift: np.ndarray, below: np.ndarray, left: np.ndarray) -> np.ndarray:
    """K (n^2, n^2) of one grid whose arrays are flattened."""
    matrix = np.zeros((n * n, n * n))
    for i in range(n):
        for j in range(n):
            here = i * n + j
            matrix[here, here] += shift[here]
            for beside, face in (((i + n - 1) % n * n + j, below[here]), (i * n + (j + n - 1) % n, left[here])):
                matrix[here, here] += face
                matrix[beside, beside] += face
                matrix[here, beside] -= face
                matrix[beside, here] -= face
    return matrix


@compiled()
def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """Lower L with L L^T = matrix; own, since LAPACK's digits depend on its threads."""
    n = matrix.shape[0]
    factor = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            factor[i, j] = np.sqrt(total) if i == j else total / factor[j, j]
    return factor


@compiled()
def _v_cycle(grids: Grids, factor: np.ndarray) -> None:
    """One V-cycle from zero for the finest right side, to the finest solution; both are in ``grids.work``."""
    last = grids.sizes.size - 1
    for level in range(last):
        n, begin = grids.sizes[level], grids.begins[level]
        below, left = _square(grids.below, begin, n), _square(grids.left, begin, n)
        inverse, right = _square(grids.work[INVERSE], begin, n), _square(grids.work[RIGHT_SIDE], begin, n)
        u = _square(grids.work[SOLUTION], begin, n)
        for i in range(n):
            for j in range(n):
                u[i, j] = right[i, j] * inverse[i, j] if (i + j) % 2 == 0 else 0.0
        _relax(below, left, inverse, right, u, 1)
        coarse = _square(grids.work[RIGHT_SIDE], grids.begins[level + 1], n // 2)
        _restrict_residual(below, left, _square(grids.work[SHIFT], begin, n), right, u, coarse)
    coarsest = grids.work[SOLUTION, grids.begins[last] :]
    coarsest[:] = grids.work[RIGHT_SIDE, grids.begins[last] :]
    _solve_cholesky(factor, coarsest)
    for level in range(last - 1, -1, -1):
        n, begin = grids.sizes[level], grids.begins[level]
        below, left = _square(grids.below, begin, n), _square(grids.left, begin, n)
        inverse, right = _square(grids.work[INVERSE], begin, n), _square(grids.work[RIGHT_SIDE], begin, n)
        u = _square(grids.work[SOLUTION], begin, n)
        _add_interpolated(_square(grids.work[SOLUTION], grids.begins[level + 1], n // 2), u)
        _relax(below, left, inverse, right, u, 1)
        _relax(below, left, inverse, right, u, 0)


@compiled()
def _relax(
    below: np.ndarray, left: np.ndarray, inverse: np.ndarray, right: np.ndarray, u: np.ndarray, colour: int
) -> None:
    """Gauss-Seidel on the cells (i, j) with i + j = ``colour`` modulo 2; n is even."""
    n = u.shape[0]
    for i in range(n):
        before, after = i - 1 if i > 0 else n - 1, i + 1 if i < n - 1 else 0
        first = (i + colour) % 2
        for j in range(first if first > 0 else 2, n - 1, 2):
            along = below[i, j] * u[before, j] + below[after, j] * u[after, j]
            across = left[i, j] * u[i, j - 1] + left[i, j + 1] * u[i, j + 1]
            u[i, j] = (right[i, j] + along + across) * inverse[i, j]
        j = 0 if first == 0 else n - 1
        previous, following = j - 1 if j > 0 else n - 1, j + 1 if j < n - 1 else 0
        along = below[i, j] * u[before, j] + below[after, j] * u[after, j]
        across = left[i, j] * u[i, previous] + left[i, following] * u[i, following]
        u[i, j] = (right[i, j] + along + across) * inverse[i, j]


@compiled()
def _restrict_residual(
    below: np.ndarray, left: np.ndarray, shift: np.ndarray, right: np.ndarray, u: np.ndarray, coarse: np.ndarray
) -> None:
    """coarse (n/2, n/2) <- P^T (right - K u) / 4, K u row by row: the residual is never stored as a whole."""
    n, half = u.shape[0], coarse.shape[0]
    residual = np.empty(n)
    coarse[:] = 0
    for i in range(n):
        _flux_row(below, left, u, i, residual)
        for j in range(n):
            residual[j] = right[i, j] - shift[i, j] * u[i, j] - residual[j]
        near = i // 2
        far = (near + (1 if i % 2 == 1 else half - 1)) % half
        for j in range(half):
            previous, following = 2 * j - 1 if j > 0 else n - 1, 2 * j + 2 if j < half - 1 else 0
            part = (3 * (residual[2 * j] + residual[2 * j + 1]) + (residual[previous] + residual[following])) / 64
            coarse[near, j] += 3 * part
            coarse[far, j] += part


@compiled()
def _add_interpolated(coarse: np.ndarray, u: np.ndarray) -> None:
    """u <- u + P coarse: 3/4 of the cell around, 1/4 of the next, per axis."""
    half = coarse.shape[0]
    row = np.empty(half)
    for i in range(2 * half):
        near = i // 2
        far = (near + (1 if i % 2 == 1 else half - 1)) % half
        for j in range(half):
            row[j] = (3 * coarse[near, j] + coarse[far, j]) / 16
        for j in range(half):
            previous, following = j - 1 if j > 0 else half - 1, j + 1 if j < half - 1 else 0
            u[i, 2 * j] += 3 * row[j] + row[previous]
            u[i, 2 * j + 1] += 3 * row[j] + row[following]


@compiled()
def _solve_cholesky(factor: np.ndarray, u: np.ndarray) -> None:
    """u <- (L L^T)^-1 u, in place."""
    n = u.size
    for i in range(n):
        total = u[i]
        for k in range(i):
            total -= factor[i, k] * u[k]
        u[i] = total / factor[i, i]
    for i in range(n - 1, -1, -1):
        total = u[i]
        for k in range(i + 1, n):
            total -= factor[k, i] * u[k]
        u[i] = total / factor[i, i]
