"""What a run's features are compared with besides the teacher: the limit of their dynamics, from a file of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varpro import names, results
from varpro.diffusion.circle import solve_diffusion
from varpro.domains.base import Measure
from varpro.domains.circle import CIRCLE
from varpro.runs.bookkeeping import locked
from varpro.runs.schedule import TIME_SCALE, schedule

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Limit:
    """A density over time that the features of wide students follow.

    ``solve(gamma, snapshot_epochs, time_scale=..., grid_size=..., progress=...)`` returns the contents of its file, and
    ``measure(contents, place)`` the measure at snapshot number ``place``. The distance to it is ``distance_<name>``.
    """

    name: str
    prefix: str  # of file names
    grid_size: int
    solve: Callable[..., dict[str, Any]]
    measure: Callable[[dict[str, Any], int], Measure]

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

        Contents: docs/definitions.md, 7. Raises ResultError where the file belongs to other parameters.
        """
        grid_size = grid_size or self.grid_size
        step = int(snapshot_epochs[1] - snapshot_epochs[0])
        usual = np.array_equal(snapshot_epochs, schedule(epochs).measured_epochs)
        changed = {"grid_size": grid_size} if grid_size != self.grid_size else {}
        changed |= {"time_scale": time_scale} if time_scale != TIME_SCALE else {}
        changed |= {} if usual else {"saving_step": step}
        path = folder / names.limit(self.prefix, {"gamma": gamma, "epochs": epochs}, changed, name)
        numbers = {"gamma": gamma, "epochs": epochs, "time_scale": time_scale, "grid_size": grid_size}
        config = numbers | {"saving_step": step}
        results.prepare(path)
        with locked(path, lambda line: print(f"{self.name}: {line}", flush=True)):
            results.sweep(path)
            if not force and results.complete(path, config):
                print(f"{self.name}: kept {path}", flush=True)
                return results.load(path)
            keywords = {"time_scale": time_scale, "grid_size": grid_size, "progress": progress}
            contents = {
                "config": config,
                "gamma": gamma,
                "time_scale": time_scale,
                "snapshot_epochs": torch.from_numpy(np.asarray(snapshot_epochs)),
                **self.solve(gamma, snapshot_epochs, **keywords),
                "provenance": results.provenance("cpu"),
            }
            results.save(path, contents)
            print(f"{self.name}: wrote {path}", flush=True)
        return contents


def _solve_on_circle(gamma: float, snapshot_epochs: np.ndarray, **keywords: Any) -> dict[str, Any]:
    solution = solve_diffusion(gamma, snapshot_epochs, **keywords)
    return {
        "grid": torch.from_numpy(solution.grid),
        "density": torch.from_numpy(solution.density).float(),
        "energy": torch.from_numpy(solution.energy),
        "energy_times": torch.from_numpy(solution.times),
    }


def _measure_on_circle(contents: dict[str, Any], place: int) -> Measure:
    return CIRCLE.measure(contents["grid"].numpy(), contents["density"][place].numpy())


CIRCLE_DIFFUSION = Limit("diffusion", "diffusion", 4096, _solve_on_circle, _measure_on_circle)
