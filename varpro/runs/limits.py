"""What a run's features are compared with besides the teacher: a limit of their dynamics, from a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varpro import cli, names, results
from varpro.diffusion import projected, torus
from varpro.diffusion.circle import solve_diffusion
from varpro.diffusion.multigrid import grid_sizes
from varpro.diffusion.projected import solve_projected
from varpro.diffusion.snapshots import choose_snapshots, density_at
from varpro.diffusion.stepping import check_grid_size
from varpro.diffusion.torus import solve_torus_diffusion
from varpro.distances import TorusDensity
from varpro.domains import circle
from varpro.domains.base import Domain, Measure
from varpro.domains.circle import CIRCLE
from varpro.domains.torus import TORUS
from varpro.runs.bookkeeping import already_there, once
from varpro.runs.schedule import TIME_SCALE, schedule

Progress = Callable[[float], None]
_TORUS_SNAPSHOTS = 140  # of 256^2 cells: 37 MB; the others follow from them to 1e-5 in the distance


@dataclass(frozen=True)
class Limit:
    """A density over time that the features of wide students follow.

    ``solve(gamma, snapshot_epochs, time_scale=..., grid_size=..., progress=...)`` returns the contents of its file, and
    ``measure(contents, epoch)`` the measure at an epoch, which knows its energy distance to points of the domain. The
    distance to it is ``distance_<name>``. ``gamma`` goes up to ``most_gamma``, on the usual grid;
    ``check_grid_size(grid_size)`` raises ValueError where there is no such grid.
    """

    name: str
    domain: Domain
    grid_size: int
    solve: Callable[..., dict[str, Any]]
    measure: Callable[[dict[str, Any], int], Measure]
    most_gamma: float
    check_grid_size: Callable[[int], object]

    def contents(
        self,
        *,
        gamma: float,
        epochs: int,
        time_scale: float,
        snapshot_epochs: np.ndarray,
        folder: Path,
        grid_size: int | None = None,
        name: str = "",
        force: bool = False,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The solution of these parameters, from its file in ``folder``, which is made where it is missing.

        Contents: docs/definitions.md, 7. Raises ResultError where the file belongs to other parameters, and UsageError,
        before anything is written, where ``gamma`` or ``grid_size`` cannot be had.
        """
        grid_size = grid_size or self.grid_size
        self._check(gamma, grid_size)
        step = int(snapshot_epochs[1] - snapshot_epochs[0])
        usual = np.array_equal(snapshot_epochs, schedule(epochs).measured_epochs)
        changed: dict[str, float] = {"grid_size": grid_size} if grid_size != self.grid_size else {}
        changed |= {"time_scale": time_scale} if time_scale != TIME_SCALE else {}
        changed |= {} if usual else {"saving_step": step}
        prefix = names.limit_prefix(self.domain.name, self.name)
        path = folder / names.limit(prefix, {"gamma": gamma, "epochs": epochs}, changed, name)
        numbers = {"gamma": gamma, "epochs": epochs, "time_scale": time_scale, "grid_size": grid_size}
        config = numbers | {"saving_step": step}

        def make() -> None:
            keywords = {"time_scale": time_scale, "grid_size": grid_size, "progress": progress}
            contents = {
                "config": config,
                "gamma": gamma,
                "time_scale": time_scale,
                **self._solution(gamma, snapshot_epochs, **keywords),
                "provenance": results.provenance("cpu"),
            }
            results.save_result(path, contents)
            self._say(f"wrote {path}")

        if force or not already_there(path, config, self._say):
            results.prepare(path)
            once(path, config, make, self._say, force=force)
        return results.load(path)

    def _say(self, line: str) -> None:
        cli.say(f"{self.name}: {line}")

    def _check(self, gamma: float, grid_size: int) -> None:
        if gamma > self.most_gamma and grid_size <= self.grid_size:
            where = f"the limit {self.name} on the {self.domain.name}"
            raise cli.UsageError(f"--gamma {gamma:g}: {where} goes up to {self.most_gamma:g}")
        try:
            self.check_grid_size(grid_size)
        except ValueError as error:
            raise cli.UsageError(f"--grid_size {grid_size}: {error}") from None

    def _solution(self, gamma: float, snapshot_epochs: np.ndarray, **keywords: Any) -> dict[str, Any]:
        try:
            return self.solve(gamma, snapshot_epochs, **keywords)
        except ValueError as error:
            raise cli.UsageError(f"--gamma {gamma:g}, --grid_size {keywords['grid_size']}: {error}") from None
        except RuntimeError as error:
            raise FloatingPointError(f"{self.name}: {error}") from None


def _tensors(solution: Any, **more: np.ndarray) -> dict[str, Any]:
    """What all solutions have, as it goes into the file: densities in float32."""
    return {
        "snapshot_epochs": torch.from_numpy(solution.snapshot_epochs),
        "grid": torch.from_numpy(solution.grid),
        "density": torch.from_numpy(solution.density).float(),
        **{name: torch.from_numpy(values).float() for name, values in more.items()},
        "energy": torch.from_numpy(solution.energy),
        "energy_times": torch.from_numpy(solution.times),
    }


def _solve_on_circle(gamma: float, snapshot_epochs: np.ndarray, **keywords: Any) -> dict[str, Any]:
    return _tensors(solve_diffusion(gamma, snapshot_epochs, **keywords))


def _solve_projected(gamma: float, snapshot_epochs: np.ndarray, **keywords: Any) -> dict[str, Any]:
    solution = solve_projected(gamma, snapshot_epochs, **keywords)
    return _tensors(solution, outer=solution.outer)


def _measure_on_circle(contents: dict[str, Any], epoch: int) -> Measure:
    place = int(np.searchsorted(contents["snapshot_epochs"].numpy(), epoch))
    return CIRCLE.measure(contents["grid"].numpy(), contents["density"][place].numpy())


def _solve_on_torus(gamma: float, snapshot_epochs: np.ndarray, *, grid_size: int, **keywords: Any) -> dict[str, Any]:
    """Where many snapshots are asked for, those that the others follow from; a coarser solution chooses them."""
    epochs = np.asarray(snapshot_epochs)
    if len(epochs) > _TORUS_SNAPSHOTS:
        coarse = min(grid_size, TORUS_DIFFUSION.grid_size) // 2
        trial = solve_torus_diffusion(gamma, epochs, grid_size=coarse, time_scale=keywords["time_scale"])
        epochs = epochs[choose_snapshots(trial.density, epochs, _TORUS_SNAPSHOTS)]
    return _tensors(solve_torus_diffusion(gamma, epochs, grid_size=grid_size, **keywords))


def _measure_on_torus(contents: dict[str, Any], epoch: int) -> Measure:
    return TorusDensity(density_at(contents["density"].numpy(), contents["snapshot_epochs"].numpy(), epoch))


_at_least_16 = partial(check_grid_size, smallest=16)
# gamma of the projected one: where the usual grid is known to be fine enough
CIRCLE_DIFFUSION = Limit(
    "diffusion", CIRCLE, 4096, _solve_on_circle, _measure_on_circle, circle.MAX_GAMMA, _at_least_16
)
CIRCLE_PROJECTED = Limit("projected", CIRCLE, 4096, _solve_projected, _measure_on_circle, 1e4, projected.check_cells)
TORUS_DIFFUSION = Limit("diffusion", TORUS, 256, _solve_on_torus, _measure_on_torus, torus.MAX_GAMMA, grid_sizes)
LIMITS = (CIRCLE_DIFFUSION, CIRCLE_PROJECTED, TORUS_DIFFUSION)
