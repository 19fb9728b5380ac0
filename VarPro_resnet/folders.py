"""Images in class folders, or in parquet tables, as uint8 tensors; decoded once into one file.

A data set is a folder with ``train/<class>/*.png`` and ``test/<class>/*.png`` (or JPEG, or WebP), as torchvision's
ImageFolder reads it: classes are numbered in alphabetical order. A table is one of Hugging Face's: columns ``img`` or
``image``, which hold the bytes of a file, and ``label``.
"""

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from varpro import results
from varpro.image_files import PARTS, table_files
from varpro.results import ResultError
from varpro.runs.bookkeeping import Report, locked

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
)  # Pillow's names of those of 8 bits or less
_FORMAT = 1  # of the file of decoded images
_BLOCK = 256  # images that a thread takes at a time


@dataclass(frozen=True, eq=False)
class Decoded:
    """One part of a data set: ``images (N, 3, side, side)`` uint8, ``labels (N,)`` int64, a digest of each image."""

    images: torch.Tensor
    labels: torch.Tensor
    digests: list[bytes]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sorted digests: it does not depend on the order of the images."""
        return _digest(sorted(self.digests))


@dataclass(frozen=True)
class _Part:
    """Where the images of a part are: their names as shown, their labels, and how the file of each is read."""

    names: Sequence[str]
    labels: Sequence[int]
    read: Callable[[int], bytes]


class _Source(Protocol):
    """A data set on the disk, not yet read."""

    files: Sequence[Path]  # all that it is made of

    def parts(self) -> tuple[dict[str, _Part], list[str]]:
        """Training and test images by name of the part, and the names of the classes."""


def load(folder: Path, cache: Path, *, side: int, report: Report) -> tuple[Decoded, Decoded, list[str]]:
    """The training and the test images of ``folder``, each ``side`` x ``side``, and the names of the classes.

    They are decoded at the first call, by one process at a time, and kept in one file in the folder ``cache``. Later
    calls take them from there if names, sizes and times of the files in ``folder`` are the same and the pixels are
    intact; otherwise they decode anew. All images must have one size; where it is not ``side``, they are resized, and
    ``report`` is told. Raises ResultError, with one line for the user, where a file is not an image, sizes differ, a
    class is empty or unknown, or there is one class only.
    """
    folder = Path(folder)
    source = _source(folder)
    stamp = _stamp(source.files, folder, side)
    where = folder.resolve()
    kept = cache / f"{where.name or 'images'}_{hashlib.sha256(os.fsencode(where)).hexdigest()[:8]}.pt"
    found = _kept(kept, stamp)
    if found is None:
        results.prepare(kept)
        with locked(kept, report) as alone:
            if alone:
                results.sweep(kept)
            found = _kept(kept, stamp)
            if found is None:
                found = _decoded(source, folder, side, report)
                decoded = {name: found[name] for name in PARTS}
                results.save(kept, {"format": _FORMAT, "stamp": stamp} | found | _plain(decoded))
    width, height = found["size"]
    if (width, height) != (side, side):
        shape = "" if width == height else ", whatever their proportions"
        report(f"images of {width} x {height} pixels are resized to {side} x {side}{shape}")
    return found["train"], found["test"], found["classes"]


# --- on the disk ---------------------------------------------------------------------------------------------------


def _source(folder: Path) -> _Source:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if not missing:
        return _ClassFolders(folder)
    if table_files(folder):
        return _Tables(folder)
    raise ResultError(
        f"{folder.absolute()}: no folder {missing[0]}/ there; a set of images is laid out as train/<class>/*.png and "
        "test/<class>/*.png (or JPEG, or WebP)"
    )


def _stamp(files: Iterable[Path], folder: Path, side: int) -> str:
    """Changes where a file comes, goes, or is written."""
    digest = hashlib.sha256(str(side).encode())
    for path in files:
        state = path.stat()
        digest.update(f"\n{path.relative_to(folder)}\0{state.st_size}\0{state.st_mtime_ns}".encode(errors="replace"))
    return digest.hexdigest()


class _ClassFolders:
    """``train/<class>/``, ``test/<class>/``; folders in folders are looked into, hidden files are not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes = self._names("train")
        if len(self.classes) < 2:
            has = f"one class, {self.classes[0]!r}" if self.classes else "no folder of a class"
            raise ResultError(f"{folder / 'train'}: has {has}; at least two classes are needed")
        for unknown in sorted(set(self._names("test")) - set(self.classes)):
            raise ResultError(f"{folder / 'test' / unknown}: a class without a folder in {folder / 'train'}")
        self.paths = {part: [self._images(part, name) for name in self.classes] for part in PARTS}
        for name, paths in zip(self.classes, self.paths["train"], strict=True):
            if not paths:
                raise ResultError(f"{folder / 'train' / name}: no images there (PNG, JPEG or WebP)")
        if not any(self.paths["test"]):
            raise ResultError(f"{folder / 'test'}: no images there (PNG, JPEG or WebP)")
        self.files = [path for part in PARTS for paths in self.paths[part] for path in paths]

    def parts(self) -> tuple[dict[str, _Part], list[str]]:
        return {name: self._part(paths) for name, paths in self.paths.items()}, self.classes

    def _names(self, part: str) -> list[str]:
        """The classes, in the order of their numbers."""
        inside = os.scandir(self.folder / part)
        return sorted(entry.name for entry in inside if entry.is_dir() and not entry.name.startswith("."))

    def _images(self, part: str, name: str) -> list[Path]:
        found, seen = [], set()
        for place, inside, names in os.walk(self.folder / part / name, followlinks=True):
            real = os.path.realpath(place)
            if real in seen:  # a link to a folder above it, or a second one to the same folder
                inside.clear()
                continue
            seen.add(real)
            images = (each for each in names if not each.startswith(".") and each.lower().endswith(SUFFIXES))
            found += [Path(place, each) for each in images]
        return sorted(found)

    @staticmethod
    def _part(paths_by_class: Sequence[Sequence[Path]]) -> _Part:
        labels = [label for label, paths in enumerate(paths_by_class) for _ in paths]
        paths = [path for paths in paths_by_class for path in paths]
        return _Part(list(map(str, paths)), labels, lambda number: paths[number].read_bytes())


class _Tables:
    """``train*.parquet`` and ``test*.parquet``, one or several of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = table_files(folder)
        self.files = [path for part in PARTS for path in self.paths[part]]

    def parts(self) -> tuple[dict[str, _Part], list[str]]:
        parts = {name: self._part(paths) for name, paths in self.paths.items()}
        train, test = (set(parts[name].labels) for name in PARTS)
        if not test or len(train) < 2 or train != set(range(len(train))) or not test <= train:
            raise ResultError(
                f"{self.folder}: its tables need images in both parts, the training one with all labels 0, 1, ..., "
                "k - 1, k >= 2, and the test one with no others"
            )
        return parts, list(map(str, sorted(train)))

    @staticmethod
    def _part(paths: Sequence[Path]) -> _Part:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ResultError(f"{paths[0]}: parquet files need the package pyarrow: pip install pyarrow") from None
        names, labels, files = [], [], []
        for path in paths:
            try:
                table = parquet.read_table(path)
                column = table["img" if "img" in table.column_names else "image"].to_pylist()
                files += [row["bytes"] for row in column]
                labels += [int(label) for label in table["label"].to_pylist()]
            except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise ResultError(
                    f"{path}: not a table with the columns img or image, which hold bytes, and label "
                    f"({type(error).__name__})"
                ) from None
            names += [f"{path}, row {row}" for row in range(len(column))]
        return _Part(names, labels, files.__getitem__)


# --- decoded -------------------------------------------------------------------------------------------------------


def _kept(path: Path, stamp: str) -> dict | None:
    """What :func:`_decoded` returned at an earlier load; None where that is of no use any more."""
    try:
        found = results.load(path)
        if (found["format"], found["stamp"]) != (_FORMAT, stamp):
            return None
        for name in PARTS:
            images, labels = found[name], found[f"{name}_labels"]
            part = Decoded(images, labels, _digests(images, labels))
            if _digest(part.digests) != found[f"{name}_digest"]:
                return None
            found[name] = part
    except (ResultError, KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return found


def _plain(decoded: dict[str, Decoded]) -> dict:
    """What goes into a file."""
    contents = {}
    for name, part in decoded.items():
        contents |= {name: part.images, f"{name}_labels": part.labels, f"{name}_digest": _digest(part.digests)}
    return contents


def _decoded(source: _Source, folder: Path, side: int, report: Report) -> dict:
    """The parts by name, ``size`` (width, height) of the files, and ``classes``, their names."""
    parts, classes = source.parts()
    report(f"decoding {sum(len(part.names) for part in parts.values())} images in {folder}, this once")
    first = parts["train"]
    size = _opened(first.read(0), first.names[0]).size
    contents = {name: _decode(part, side, size, first.names[0]) for name, part in parts.items()}
    return contents | {"size": list(size), "classes": classes}


def _decode(part: _Part, side: int, size: tuple[int, int], first: str) -> Decoded:
    """All images of ``part``, which must have the ``size`` of the one that is called ``first``."""
    count = len(part.names)
    pixels = np.empty((count, side, side, 3), dtype=np.uint8)

    def fill(block: range) -> int:
        for number in block:
            pixels[number] = _pixels(part.read(number), part.names[number], side, size, first)
        return len(block)

    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    pool = ThreadPoolExecutor()  # files are read, and pixels decompressed, without holding the interpreter
    try:
        with tqdm(total=count, desc="decoding", unit="image", disable=not sys.stderr.isatty()) as bar:
            for done in pool.map(fill, blocks):  # in order: of several bad files always the same one is named
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(part.labels, dtype=torch.int64)
    return Decoded(images, labels, _digests(images, labels))


def _pixels(data: bytes, name: str, side: int, size: tuple[int, int], first: str) -> np.ndarray:
    """One image as (side, side, 3) uint8, without its transparency."""
    image = _opened(data, name)
    if image.size != size:
        raise ResultError(
            f"{name}: has {image.width} x {image.height} pixels, but {first} has {size[0]} x {size[1]}; "
            "all images must have one size"
        )
    if image.mode not in _MODES:
        raise ResultError(f"{name}: has more than 8 bits a channel (mode {image.mode})")
    try:
        colours = image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds; for the reader they all mean the same
        raise _unreadable(name, error) from None
    if size != (side, side):
        colours = colours.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(colours)


def _opened(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # as above
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> ResultError:
    return ResultError(f"{name}: not an image that can be read ({type(error).__name__}); PNG, JPEG or WebP is needed")


def _digests(images: torch.Tensor, labels: torch.Tensor) -> list[bytes]:
    """SHA-256 of every image: of its label, in one byte (four from 256 up), and its pixels row by row, each with its
    three colours."""
    rows = images.permute(0, 2, 3, 1).contiguous().numpy()
    numbers = (label.to_bytes(1 if label < 256 else 4) for label in labels.tolist())
    return [hashlib.sha256(number + row.tobytes()).digest() for number, row in zip(numbers, rows, strict=True)]


def _digest(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()
