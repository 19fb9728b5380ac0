"""L-BFGS on the reduced risk: torch's, with its strong-Wolfe line search.

scipy's L-BFGS-B takes as many evaluations and less time between them, but cannot go on from a file: its memory of past
steps is out of reach. torch's is in a state dict.
"""

from collections.abc import Mapping
from typing import Any

import torch

from varpro.optimizers.base import Optimizer
from varpro.solvers.base import Array

_MEMORY = 10  # pairs of steps and gradient differences
_SEARCH = 25  # evaluations in one iteration at most
_FIRST_MOVE = 0.1  # the first trial step moves a coordinate by this on average
_SCALE = 1e8  # of the objective at the start: the library's absolute thresholds (1e-10) must not be met


class LBFGS(Optimizer):
    """One iteration of L-BFGS at a time, unknowns in the coordinates of the chart. The risk never rises.

    Where the line search finds no lower point the memory is dropped once; after that the training ends.
    """

    name, label, usual_iterations = "lbfgs", "L-BFGS", 1000

    def _start(self, weights: Array) -> tuple[float, Array]:
        self._point = self.chart.coordinates(torch.as_tensor(weights))
        self._known = [(self._point, self._reduced(self._point))]
        _, outer, risk, _ = self._known[0][1]
        self._scale = _SCALE / risk if risk > 0 else 1.0
        self._new_memory()
        return risk, outer

    def _new_memory(self) -> None:
        self._parameter = self._point.clone().requires_grad_()
        self._library = torch.optim.LBFGS(
            [self._parameter],
            max_iter=1,
            max_eval=_SEARCH,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=_MEMORY,
            line_search_fn="strong_wolfe",
        )
        self._fresh = True

    def _evaluate(self) -> torch.Tensor:
        """The scaled risk at the library's point, its gradient left where the library looks for it."""
        point = self._parameter.detach()
        # The library asks again for the point that it has arrived at.
        found = next((found for known, found in self._known if torch.equal(known, point)), None)
        if found is None:
            point = point.clone()
            found = self._reduced(point)
            self._known.append((point, found))
        self._parameter.grad = self._scale * found[3]
        return torch.tensor(self._scale * found[2], dtype=torch.float64)

    def _iterate(self) -> tuple[Array, Array, float] | None:
        while True:
            # The library divides its first step by the sum of the gradient's sizes.
            self._library.param_groups[0]["lr"] = _FIRST_MOVE * self._point.numel() if self._fresh else 1.0
            self._library.step(self._evaluate)
            best, found = min(self._known, key=lambda entry: entry[1][2])
            arrived = torch.equal(best, self._parameter.detach())
            if found[2] < self.state.risk:
                self._point, self._known = best, [(best, found)]
                self._fresh = False
                if not arrived:
                    self._new_memory()
                return found[:3]
            if self._fresh:
                return None
            self._new_memory()

    def _memory(self) -> dict[str, Any]:
        library = self._library.state_dict()["state"].get(0, {})
        return {"point": self._point, "scale": self._scale, "fresh": self._fresh, "library": library}

    def _recall(self, memory: Mapping[str, Any]) -> None:
        self._point, self._scale = memory["point"].to(self._point), memory["scale"]
        evaluations = self._evaluations
        self._known = [(self._point, self._reduced(self._point))]
        self._evaluations = evaluations
        self._new_memory()
        self._fresh = memory["fresh"]
        if memory["library"]:
            groups = self._library.state_dict()["param_groups"]
            self._library.load_state_dict({"state": {0: memory["library"]}, "param_groups": groups})
