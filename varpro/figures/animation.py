"""Films of results: frames of a figure, and the GIF made of them."""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from varpro import results
from varpro.paper import grid

_FRAMES = 125
_FRAME_MS = 90
_HOLD_MS = 1000  # the first and the last frame stay for a moment
_LAST_EPOCH = 10000  # beyond it, next to nothing moves


def frame_epochs(epochs: np.ndarray, frames: int = _FRAMES) -> np.ndarray:
    """At most ``frames`` of the increasing ``epochs (S,)``, up to 10000; dense at the start, which moves fastest.

    Snapshots only: a state between two of them would be shown as it never was.
    """
    last = min(int(epochs[-1]), _LAST_EPOCH)
    wanted = last * np.linspace(0, 1, frames) ** 2
    return np.unique(epochs[np.abs(epochs[:, None] - wanted).argmin(axis=0)])


@dataclass(frozen=True)
class Animation:
    """A GIF that a notebook shows, and keeps, as a moving picture."""

    path: Path = field(repr=False)  # a path of this machine has no place in a notebook

    def _repr_html_(self) -> str:
        data = base64.b64encode(self.path.read_bytes()).decode()
        return f'<img alt="{self.path.stem}" src="data:image/gif;base64,{data}">'


@dataclass(frozen=True)
class Film:
    """Frames of one size, and the colours that they are reduced to (by default those of the last frame)."""

    frames: Sequence[Image.Image]
    palette: Image.Image | None = None  # in mode P

    def write(self, path: Path) -> Animation:
        """Write an endless GIF whose first and last frame stay for a moment."""
        # one small palette for all frames, so that neighbours differ only where something moves
        palette = self.palette or self.frames[-1].quantize(32)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in self.frames]
        durations = [_HOLD_MS, *[_FRAME_MS] * (len(frames) - 2), _HOLD_MS]
        film = {"save_all": True, "append_images": frames[1:], "duration": durations, "loop": 0, "optimize": True}
        with results.replacing(path) as stream:
            frames[0].save(stream, format="GIF", **film)
        return Animation(path)


def film(
    figure: Figure, epochs: Iterable[int], show: Callable[[int], None], palette: Image.Image | None = None
) -> Film:
    """A film with a frame for each of ``epochs``: ``figure`` after ``show(epoch)``, with epoch and time above it."""
    canvas, clock = FigureCanvasAgg(figure), figure.suptitle(" ")
    frames = []
    for epoch in epochs:
        show(epoch)
        clock.set_text(f"epoch {epoch:\u2007>5}, $t$ = {epoch * grid.TIME_SCALE:.2f}")  # a space as wide as a digit
        canvas.draw()
        figure.set_layout_engine("none")  # the layout of the first frame holds for all: nothing jumps
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))
    return Film(frames, palette)
