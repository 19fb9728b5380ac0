"""Small pictures of all figures, cut from the outputs that the committed notebooks hold, and the README's animation.

python -m varpro.figures.thumbnails      writes docs/thumbnails/<figure>.png and diffusion_animation.gif anew
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()

import base64
import io
import json
import re
from argparse import ArgumentParser
from collections.abc import Iterator

from PIL import Image

from varpro import names
from varpro.paper import grid

FOLDER = names.ROOT / "docs" / "thumbnails"
ANIMATION = names.ROOT / "diffusion_animation.gif"  # at the head of the README
WIDTH = 220  # pixels; the README shows them at that size or less
_TALLEST = 220
_COLOURS = 64  # of the palette: a few kB a picture
_SHOWN = re.compile(r"publish\(\"(\w+)\"\)")  # in a cell: the figure that it shows
_EMBEDDED = re.compile(r"base64,([A-Za-z0-9+/=]+)")  # an animation in an output of HTML
_FRAME = 0.3  # of an animation: the place of the frame that stands for it


def thumbnails() -> Iterator[tuple[str, Image.Image]]:
    """(name, small picture) of every figure of the grid that a committed notebook shows."""
    return ((name, _small(data)) for name, data in pictures())


def pictures() -> Iterator[tuple[str, bytes]]:
    """(name, PNG or GIF) of every figure of the grid that a committed notebook shows, in the order of the notebooks."""
    notebooks = dict.fromkeys(notebook for section in grid.SECTIONS.values() for notebook in section.notebooks)
    for notebook in notebooks:
        cells = json.loads((names.ROOT / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            shown = _SHOWN.search("".join(cell["source"]))
            data = _picture(cell.get("outputs", [])) if shown else None
            if data is not None:
                yield shown[1], data


def _picture(outputs: list[dict]) -> bytes | None:
    """The picture among the outputs of a cell; None if there is none."""
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            return base64.b64decode("".join(data["image/png"]))
        embedded = _EMBEDDED.search("".join(data.get("text/html", "")))
        if embedded:
            return base64.b64decode(embedded[1])
    return None


def _small(data: bytes) -> Image.Image:
    """A picture, or one frame of an animation, on white and no larger than a thumbnail."""
    with Image.open(io.BytesIO(data)) as image:
        image.seek(int(_FRAME * getattr(image, "n_frames", 1)))
        layers = image.convert("RGBA")
    picture = Image.new("RGBA", layers.size, "white")
    picture.alpha_composite(layers)
    scale = min(WIDTH / picture.width, _TALLEST / picture.height)
    size = (round(scale * picture.width), round(scale * picture.height))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(_COLOURS)


def main() -> None:
    """Write all thumbnails and say which."""
    ArgumentParser(description=__doc__).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in pictures():
        path = FOLDER / f"{name}.png"
        _small(data).save(path, optimize=True)
        print(f"{path.relative_to(names.ROOT)}: {path.stat().st_size / 1e3:.1f} kB")
        if name == ANIMATION.stem:
            ANIMATION.write_bytes(data)
            print(f"{ANIMATION.relative_to(names.ROOT)}: {len(data) / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
