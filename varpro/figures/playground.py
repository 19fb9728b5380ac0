"""A training on the circle that runs while a slider moves: the logic of Playground.ipynb, and its widgets.

:func:`train` makes a training from a few numbers, :func:`draw` shows one of its states, :class:`Playground` puts
sliders around them.
"""

import base64
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from time import process_time
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varpro.diffusion.circle import Diffusion, solve_diffusion
from varpro.diffusion.snapshots import density_at
from varpro.domains.circle import CIRCLE, Circle
from varpro.features import FeatureMap, ReLUCircle
from varpro.figures import panels
from varpro.figures.circle import angle_axis
from varpro.figures.panels import TEACHER_LOOK
from varpro.paper import records
from varpro.problem import drawn_problem
from varpro.runs.descent import Descent, GradientDescent, Iterations
from varpro.runs.options import GRADIENT_DESCENT, OPTIMIZERS
from varpro.runs.schedule import TIME_SCALE
from varpro.solvers.base import Objective
from varpro.solvers.choose import Refusal, choose

EPOCHS = 32000  # of gradient descent, as in the paper
TOLERANCE = 1e-6  # of the risk, where an optimizer ends
TEACHER_WIDTH = 4096
_SNAPSHOTS = 120
_GRID_SIZE = 1024  # of the diffusion
_RELU = ReLUCircle()
_CIRCLE_INPUTS = torch.from_numpy(np.stack([np.cos(records.CIRCLE), np.sin(records.CIRCLE)], axis=1))


@dataclass(frozen=True)
class Setting:
    """What is trained. ``samples`` may be infinite; ``centre`` is 0 (biased) or 1 (unbiased penalty).

    ``optimizer`` is ``gd`` or one of :data:`varpro.runs.options.OPTIMIZERS`. ``features`` live on a circle, with the
    usual law of the teacher's neurons or with another one.
    """

    width: int = 128
    samples: float = 4096
    lmbda: float = 1e-3
    gamma: float = 100.0
    seed: int = 0
    centre: float = 1.0
    optimizer: str = "lm"
    features: FeatureMap = _RELU


@dataclass(frozen=True)
class Course:
    """A training: S states, and what they are compared with.

    ``epochs (S,)`` numbers the states (iterations of an optimizer); ``weights (S, M, 2)``; ``outer (S, M)``;
    ``risks (S,)``; ``distances (S,)``, energy distances of the features to the teacher's; ``target (G,)``, the
    teacher's values at ``records.CIRCLE``; ``seconds`` of processor time that the training took.
    """

    setting: Setting
    epochs: np.ndarray
    weights: np.ndarray
    outer: np.ndarray
    risks: np.ndarray
    distances: np.ndarray
    target: np.ndarray
    seconds: float


def kept_epochs(last: int) -> np.ndarray:
    """Numbers of the states that are kept, from 0 to ``last``: all of a few, else dense at first."""
    if last <= 2 * _SNAPSHOTS:
        return np.arange(last + 1)
    return np.unique(np.concatenate([[0], np.geomspace(1, last, _SNAPSHOTS).round().astype(int)]))


@lru_cache(maxsize=64)
def train(setting: Setting) -> Course:
    """Train as ``setting`` says: gradient descent for 32000 epochs, an optimizer until the risk hardly changes.

    Raises ValueError where an option is not allowed, Refusal where no solver computes it, FloatingPointError where the
    training breaks down.
    """
    if setting.optimizer not in (GRADIENT_DESCENT, *OPTIMIZERS):
        allowed = ", ".join((GRADIENT_DESCENT, *OPTIMIZERS))
        raise ValueError(f"optimizer {setting.optimizer!r} is not allowed: {allowed}")
    features = setting.features
    if not isinstance(features.domain, Circle):
        raise ValueError(f"features on the domain {features.domain.name!r} are not allowed: on a circle")
    problem = drawn_problem(features, setting.seed, setting.samples, setting.width, TEACHER_WIDTH, setting.gamma)
    objective = Objective(features, setting.lmbda, setting.centre, TIME_SCALE, "ridge")
    begin = process_time()
    found = choose(objective, problem, device="cpu")
    solver = found.solver.build(objective, problem, device=found.device, dtype=found.dtype, tf32=False)
    descent: Descent
    if setting.optimizer == GRADIENT_DESCENT:
        descent = GradientDescent(solver, problem.student)
        epochs = kept_epochs(EPOCHS)
    else:
        kind = OPTIMIZERS[setting.optimizer]
        obstacle = kind.obstacle(found.solver, objective, problem)
        if obstacle:
            raise ValueError(f"optimizer {setting.optimizer!r}: {obstacle}")
        descent = Iterations(kind(solver, objective, problem, tolerance=TOLERANCE))
        epochs = kept_epochs(kind.usual_iterations)
    states = [_state(descent)]
    reached = [0]
    risks: list[float] = []
    for stretch in np.diff(epochs):
        losses = descent.advance(int(stretch))
        if not len(losses):  # the optimizer had ended
            break
        risks.append(float(losses[0]))
        reached.append(reached[-1] + len(losses))
        states.append(_state(descent))
    risks.append(float(solver.reduced(descent.weights).risk))
    seconds = process_time() - begin
    if not np.isfinite(risks).all():
        raise FloatingPointError("the risk is not finite")
    assert problem.teacher is not None  # its width is finite
    measure = features.domain.measure
    teacher = measure(problem.teacher.numpy())
    weights = np.stack([state[0] for state in states])
    return Course(
        setting,
        np.array(reached),
        weights,
        np.stack([state[1] for state in states]),
        np.array(risks),
        np.array([measure(each).energy_distance(teacher) for each in weights]),
        features.predict(problem.teacher, _CIRCLE_INPUTS).numpy(),
        seconds,
    )


@lru_cache(maxsize=16)
def diffusion(gamma: float) -> Diffusion:
    """The ultra-fast diffusion towards the law of shape ``gamma``, at the epochs of gradient descent."""
    return solve_diffusion(gamma, kept_epochs(EPOCHS).tolist(), TIME_SCALE, _GRID_SIZE)


def draw(course: Course, step: int) -> Figure:
    """State number ``step`` of ``course``: densities of angles, the fitted function, risk and distance so far."""
    setting, epoch = course.setting, course.epochs[step]
    descends = setting.optimizer == GRADIENT_DESCENT
    with panels.style():
        figure = Figure(figsize=(10, 3.2))
        density, fit, risk = figure.subplots(1, 3)
        _draw_density(density, course, step)
        prediction = setting.features.predict(
            torch.from_numpy(course.weights[step]), _CIRCLE_INPUTS, torch.from_numpy(course.outer[step])
        )
        fit.plot(records.CIRCLE, prediction.numpy(), color=_STUDENT, label="student")
        fit.plot(records.CIRCLE, course.target, label="teacher", **TEACHER_LOOK)
        angle_axis(fit)
        fit.autoscale(axis="y")
        fit.set(xlabel="angle of the input", ylabel="f", title="fit")
        fit.legend()
        later = np.maximum(course.epochs, 1) if descends else course.epochs
        risk.plot(later, course.risks, color=_STUDENT, label="risk")
        risk.plot(later, course.distances, color=_DIFFUSION, label="distance to the teacher")
        risk.axvline(later[step], color="0.5", linewidth=0.8)
        risk.set(xscale="log" if descends else "linear", yscale="log")
        risk.set(xlabel="epoch" if descends else "iteration", title=f"risk {course.risks[step]:.3g}")
        risk.legend()
        unit = f"epoch {epoch}" if descends else f"iteration {epoch}"
        figure.suptitle(
            f"{unit} of {course.epochs[-1]}; the training took {_spoken(course.seconds)} of processor time", fontsize=9
        )
    return figure


_STUDENT, _DIFFUSION = "#31688e", "#d8576b"


def _draw_density(axes: Axes, course: Course, step: int) -> None:
    """Features, the teacher's law, and the diffusion to the usual one: at the same time for gradient descent, else at
    the end."""
    weights, gamma, domain = course.weights[step], course.setting.gamma, course.setting.features.domain
    learned = records.smoothed_density(np.arctan2(weights[:, 1], weights[:, 0]), records.CIRCLE)
    axes.plot(records.CIRCLE, learned, color=_STUDENT, label="features")
    if domain is CIRCLE:
        solution = diffusion(gamma)
        descends = course.setting.optimizer == GRADIENT_DESCENT
        epoch = course.epochs[step] if descends else EPOCHS
        reference = density_at(solution.density, solution.snapshot_epochs, float(epoch))
        name = "diffusion" if descends else "diffusion, end"
        axes.plot(solution.grid, reference, color=_DIFFUSION, linewidth=1, label=name)
    law = domain.law(gamma)
    if law is not None:
        axes.plot(records.CIRCLE, law.density(records.CIRCLE), label="teacher", **TEACHER_LOOK)
    angle_axis(axes)
    axes.set_title(f"density, distance {course.distances[step]:.3g}")
    axes.legend(loc="upper left")


def picture(course: Course, step: int) -> bytes:
    """:func:`draw` as PNG."""
    stream = io.BytesIO()
    draw(course, step).savefig(stream, format="png", dpi=100)
    return stream.getvalue()


class Playground(widgets.VBox):
    """Sliders, a picture, and a slider for the epoch. Whatever moves, the picture is that of the new training.

    ``features`` are what the student is made of: any on a circle.
    """

    def __init__(self, features: FeatureMap | None = None) -> None:
        start = Setting() if features is None else Setting(features=features)
        self.features = start.features
        slider: dict[str, Any] = {"style": {"description_width": "7em"}, "layout": {"width": "26em"}}
        self.controls: dict[str, widgets.Widget] = {
            "width": widgets.SelectionSlider(
                options=[2**k for k in range(2, 12)], value=start.width, description="neurons M", **slider
            ),
            "samples": widgets.SelectionSlider(
                options=[*((str(2**k), 2.0**k) for k in range(4, 17, 2)), ("infinity", math.inf)],
                value=start.samples,
                description="samples N",
                **slider,
            ),
            "lmbda": widgets.SelectionSlider(
                options=[(f"1e-{k}", float(f"1e-{k}")) for k in range(1, 7)],
                value=start.lmbda,
                description="lambda",
                **slider,
            ),
            "gamma": widgets.SelectionSlider(
                options=[0.0, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0],
                value=start.gamma,
                description="gamma",
                **slider,
            ),
            "seed": widgets.IntSlider(min=0, max=20, value=start.seed, description="seed", **slider),
            "centre": widgets.ToggleButtons(
                options=[("biased: u²/2", 0.0), ("unbiased: (u - 1)²/2", 1.0)],
                value=start.centre,
                description="penalty",
            ),
            "optimizer": widgets.Dropdown(
                options=[("gradient descent", GRADIENT_DESCENT)]
                + [(kind.label, name) for name, kind in OPTIMIZERS.items()],
                value=start.optimizer,
                description="optimizer",
            ),
        }
        self.epoch = widgets.IntSlider(
            min=0, max=0, description="state", readout=False, style=slider["style"], layout={"width": "60em"}
        )
        self.image = widgets.Image(format="png")
        self.message = widgets.HTML()
        controls = list(self.controls.values())
        super().__init__([widgets.HBox(controls[:2]), widgets.HBox(controls[2:4]), widgets.HBox(controls[4:5])])
        self.children = [*self.children, widgets.HBox(controls[5:]), self.epoch, self.image, self.message]
        for control in controls:
            control.observe(lambda change: self.retrain(), names="value")
        self.epoch.observe(lambda change: self._show(), names="value")
        self.retrain()

    @property
    def setting(self) -> Setting:
        """What the sliders say."""
        return Setting(**{name: control.value for name, control in self.controls.items()}, features=self.features)

    def retrain(self) -> None:
        """Train what the sliders say and show its last state; a training that breaks down leaves one line."""
        self.message.value = "Training. The first one compiles, for up to a minute."
        try:
            self._course = train(self.setting)
        except FloatingPointError as error:
            self.message.value = f"This training breaks down: {error}."
            return
        except (ValueError, Refusal) as error:
            self.message.value = f"This cannot be trained: {error}."
            return
        self.message.value = ""
        before, last = self.epoch.value, len(self._course.epochs) - 1
        with self.epoch.hold_trait_notifications():
            self.epoch.max = last
            self.epoch.value = last
        if last == before:  # otherwise the slider, which has moved, has shown it
            self._show()

    def _show(self) -> None:
        self.image.value = picture(self._course, min(self.epoch.value, len(self._course.epochs) - 1))

    def _repr_mimebundle_(self, **keywords: Any) -> dict[str, Any]:
        """The widget, and the picture for where no widgets are shown."""
        bundle = dict(super()._repr_mimebundle_(**keywords))
        return bundle | {"image/png": base64.b64encode(self.image.value).decode()}


def _state(descent: Descent) -> tuple[np.ndarray, np.ndarray]:
    """Weights (M, 2) and outer weights (M,), whatever the form of the solver."""
    weights, outer = (torch.as_tensor(each).double().numpy().copy() for each in (descent.weights, descent.outer))
    return weights, outer.reshape(-1)


def _spoken(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
