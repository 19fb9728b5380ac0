"""Images to train on, and their random crops and flips for a whole epoch at once (paper, Section 6.2).

Images stay uint8 on the device that trains; what is random about an epoch is drawn on the CPU, so that it does not
depend on the device. CIFAR-10 comes through torchvision, or from class folders, and so does any other set of images;
handwritten digits, which scikit-learn brings along, stand in for it where it is not at hand.
"""

from varpro.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports that take seconds

import hashlib
import http.client
import os
import socket
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from varpro import cli, image_files, names
from varpro.results import ResultError
from varpro.runs.bookkeeping import Report, locked
from varpro.threads import one_torch_thread
from VarPro_resnet import folders
from VarPro_resnet.folders import Decoded

# torchvision and scikit-learn take seconds to import: each is imported where its images are loaded

DATASETS = ("cifar10", "images", "digits", "synthetic")
FINGERPRINTS = {  # of the official images of CIFAR-10: see Decoded.fingerprint
    "train": "d59acf989e068e709ce686cda292672c7b212c08d29d3d3e6d8c3aa99eba6a85",
    "test": "899683d46c3a8c66fd56e1af12202e69fe5a4517be10b0f68e04c78fe585c57c",
}
MIRROR = "VARPRO_CIFAR10_URL"  # environment variable: where to download the archive of CIFAR-10 from instead

SIDE = 32  # pixels
PADDING = 4  # pixels of zeros on each side before a crop
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10 per channel, in units of the brightest value
STD = (0.2023, 0.1994, 0.2010)

_DIGITS_TRAIN = 1500  # of 1797
_PATIENCE = 60.0  # seconds without a byte after which a download has failed
_BLOCK = 512  # images at a time: their indices and copies stay within 25 MB, and mostly in the cache
_FAILURES = (RuntimeError, OSError, EOFError, ValueError, http.client.HTTPException, tarfile.TarError)


@dataclass(frozen=True, eq=False)
class Images:
    """``train`` and ``test (N, 3, 32, 32)`` uint8 with labels (N,) int64 from 0 to ``classes`` - 1.

    ``mean`` and ``std`` are those that the pixels, divided by 255, are normalised by; ``flips`` says whether a mirrored
    image keeps its label.
    """

    train: torch.Tensor
    train_labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flips: bool
    classes: int
    name: str
    class_names: tuple[str, ...] = ()  # in the order of the labels, where they are known

    @property
    def digest(self) -> str:
        """SHA-256 of all images and labels in their order, which the draws of an epoch refer to."""
        digest = hashlib.sha256()
        for tensor in (self.train, self.train_labels, self.test, self.test_labels):
            digest.update(tensor.cpu().contiguous().numpy())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Images":
        """The same with all tensors on ``device``."""
        names = ("train", "train_labels", "test", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def load(
    name: str,
    folder: Path,
    *,
    flips: bool = True,
    cache: Path | None = None,
    download: bool = True,
    report: Report = print,
) -> Images:
    """The data set ``name`` of :data:`DATASETS`, on the CPU.

    ``images`` is any set of images in class folders (VarPro_resnet/folders.py), normalised by mean and standard
    deviation of its own training images, which are mirrored if ``flips``. ``cifar10`` lies in ``folder`` in that
    layout, and is known by its fingerprint, or in the official archive: ``cifar-10-python.tar.gz`` is taken from
    there, or else, with ``download``, fetched from its home or from the address in the environment variable
    ``VARPRO_CIFAR10_URL``. What was decoded from folders is kept in ``cache`` (by default beside the results), and
    ``report`` is told what is done. The other data sets need neither folder nor network.

    Raises ResultError, with one line that says what is wrong or what to put where; ValueError for another name.
    """
    folder, cache = Path(folder), cache or names.directory(names.RESNET) / "images"
    if name == "images":
        return _images(folder, cache, flips, report)
    if name == "cifar10":
        in_folders = image_files.in_folders(folder)
        return _cifar10_images(folder, cache, report) if in_folders else _cifar10(folder, download, report)
    if name == "digits":
        return _digits()
    if name == "synthetic":
        return synthetic()
    raise ValueError(f"data set {name!r} is not allowed: {', '.join(DATASETS)}")


def synthetic(count: int = 50_000, test_count: int = 10_000) -> Images:
    """Random images and labels of the shape of CIFAR-10, always the same: for measurements of speed only."""
    generator = torch.Generator().manual_seed(0)

    def drawn(images: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randint(0, 256, (images, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        return pixels, torch.randint(0, 10, (images,), generator=generator)

    return Images(*drawn(count), *drawn(test_count), MEAN, STD, flips=True, classes=10, name="synthetic")


# --- class folders -----------------------------------------------------------------------------------------------


def _images(folder: Path, cache: Path, flips: bool, report: Report) -> Images:
    train, test, classes = folders.load(folder, cache, side=SIDE, report=report)
    mean, std = _statistics(train.images)
    if min(std) == 0:
        raise ResultError(f"{folder}: a colour has the same brightness everywhere in the training images")
    parts = train.images, train.labels, test.images, test.labels
    return Images(*parts, mean, std, flips=flips, classes=len(classes), name="images", class_names=tuple(classes))


def _cifar10_images(folder: Path, cache: Path, report: Report) -> Images:
    train, test, _ = folders.load(folder, cache, side=SIDE, report=report)
    for name, part in (("train", train), ("test", test)):
        _recognise(name, part, folder)
    parts = train.images, train.labels, test.images, test.labels
    return Images(*parts, MEAN, STD, flips=True, classes=10, name="cifar10")


def _recognise(name: str, part: Decoded, folder: Path) -> None:
    found = part.fingerprint
    if found != FINGERPRINTS[name]:
        raise ResultError(
            f"{folder}: its {name} images are not the official ones of CIFAR-10 ({len(part.labels)} with fingerprint "
            f"{found[:8]}..., not {FINGERPRINTS[name][:8]}...); --dataset images takes any images"
        )


def _statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of ``images (N, 3, H, W)`` uint8, exactly, in units of 255."""
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        mean = (counts @ values / counts.sum()).item()
        means.append(mean)
        deviations.append((counts @ (values - mean).square() / counts.sum()).sqrt().item())
    return tuple(means), tuple(deviations)


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


def _cifar10(folder: Path, download: bool, report: Report) -> Images:
    """CIFAR-10 as torchvision loads it; one process at a time downloads and unpacks.

    Its files are pickles, which could execute code. torchvision compares the md5 sum of the archive before it is
    unpacked, and of each batch and the label names before they are unpickled, with those of the official files: this
    check is what makes it safe.
    """
    try:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity
    except ImportError:
        raise ResultError(
            "--dataset cifar10: the archive is read by the package torchvision: pip install torchvision; class folders "
            "need none"
        ) from None

    source = type("CIFAR10", (CIFAR10,), {"url": os.environ.get(MIRROR) or CIFAR10.url})
    archive = folder / source.filename
    try:
        fetch = download or check_integrity(archive, source.tgz_md5)  # an intact archive is only unpacked
        if fetch:
            folder.mkdir(parents=True, exist_ok=True)
        writes = fetch and os.access(folder, os.W_OK)
        with locked(archive, report) if writes else nullcontext(), _quiet_torchvision():
            train, test = (source(folder, train=part, download=fetch) for part in (True, False))
    except _FAILURES as error:
        tried = f" from {source.url}" if fetch else ""
        raise ResultError(
            f"CIFAR-10 could not be loaded{tried} ({_reason(error)}); put {source.filename} with md5 {source.tgz_md5} "
            f"into {folder.absolute()}, or set {MIRROR} to a mirror; --dataset digits works without it"
        ) from None
    return Images(*_tensors(train), *_tensors(test), MEAN, STD, flips=True, classes=10, name="cifar10")


def _tensors(dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, 32, 32) and labels (N,) of a torchvision data set, which keeps (N, 32, 32, 3)."""
    return torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)


def _reason(error: Exception) -> str:
    if type(error) is RuntimeError:  # torchvision's own; its advice is about its own arguments
        return "files are missing, or their md5 sums differ from the official ones"
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _quiet_torchvision() -> Iterator[None]:
    """torchvision with its progress bar on a terminal only, and with downloads that give up."""
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with open(os.devnull, "w") as nowhere, nullcontext() if sys.stderr.isatty() else redirect_stderr(nowhere):
            yield
    finally:
        socket.setdefaulttimeout(patience)


# --- digits ------------------------------------------------------------------------------------------------------


def _digits() -> Images:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels from 0 to 16, grey, enlarged to 32 x 32.

    Always split in the same way, 1500 for training and 297 for testing. A mirrored digit is no digit: no flips.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ResultError(
            "--dataset digits: they come with the package scikit-learn: pip install scikit-learn"
        ) from None

    digits = load_digits()
    small = torch.from_numpy(digits.images)[:, None] * (255 / 16)
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear").round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tensor_split([_DIGITS_TRAIN])
    grey = large[train, 0].double() / 255
    mean, std = (grey.mean().item(),) * 3, (grey.std(correction=0).item(),) * 3
    parts = large[train], labels[train], large[test], labels[test]
    return Images(*parts, mean, std, flips=False, classes=10, name="digits")


# --- augmentation ------------------------------------------------------------------------------------------------


@dataclass
class Draws:
    """What is random about an epoch of N images: their ``order (N,)``, and of each, in this order, the row and the
    column of the crop, ``offsets (N, 2)`` from 0 to 8, and whether it is mirrored, ``flips (N,)`` bool."""

    order: torch.Tensor
    offsets: torch.Tensor
    flips: torch.Tensor


def draw(count: int, generator: torch.Generator, flips: bool) -> Draws:
    """The draws of an epoch of ``count`` images from a generator on the CPU, in this order: ``randperm(count)``,
    ``randint(0, 9, (count, 2))``, ``rand(count) < 0.5``; the last is drawn, but left out, where ``flips`` is false."""
    order = torch.randperm(count, generator=generator)
    offsets = torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    return Draws(order, offsets, mirrored & flips)


def augment(
    images: torch.Tensor,
    draws: Draws,
    mean: Iterable[float],
    std: Iterable[float],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """The images (B, 3, 32, 32) of an epoch, or of the part of one that ``draws`` was cut to: image ``order[i]`` of
    ``images (N, 3, 32, 32)`` uint8, padded with zeros, cropped, mirrored, normalised.

    Runs on the device of ``images``, without the host waiting for it, and takes 25 MB besides the result. The result
    has the bits of the torchvision transforms pad, crop, hflip, to_tensor, normalize. ``memory_format`` is that of
    the result. A narrow ``dtype`` holds the values of float32, rounded.
    """
    order, offsets, flips = (_moved(tensor, images.device) for tensor in (draws.order, draws.offsets, draws.flips))
    parts = _parts(len(order))
    blocks = (_cropped(images.index_select(0, order[part]), offsets[part], flips[part]) for part in parts)
    shape = (len(order), *images.shape[1:])
    return _normalised(blocks, shape, images.device, mean, std, dtype, memory_format)


def normalise(
    images: torch.Tensor,
    mean: Iterable[float],
    std: Iterable[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """(pixels / 255 - mean) / std of ``images (N, 3, 32, 32)`` uint8, as :func:`augment` does it."""
    blocks = (images[part] for part in _parts(len(images)))
    return _normalised(blocks, images.shape, images.device, mean, std, dtype, memory_format)


def _parts(count: int) -> Iterator[slice]:
    return (slice(first, min(first + _BLOCK, count)) for first in range(0, count, _BLOCK))


def _cropped(images: torch.Tensor, offsets: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """Windows (B, 3, 32, 32) of the padded images: pixel (r, c) is the padded one at (row + r, column + c), or at
    (row + r, column + 31 - c) where mirrored."""
    count, channels = images.shape[:2]
    padded = F.pad(images, (PADDING,) * 4)
    steps = torch.arange(SIDE, device=images.device)
    rows = offsets[:, :1] + steps
    columns = offsets[:, 1:] + torch.where(flips[:, None], SIDE - 1 - steps, steps)
    places = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # in a padded channel read as one row
    places = places.view(count, 1, -1).expand(-1, channels, -1)
    return padded.reshape(count, channels, -1).gather(2, places).view(images.shape)


@one_torch_thread()  # blocks are small
def _normalised(
    blocks: Iterable[torch.Tensor],
    shape: tuple[int, ...],
    device: torch.device,
    mean: Iterable[float],
    std: Iterable[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> torch.Tensor:
    """The uint8 ``blocks``, one after the other, in a tensor of ``shape``: (pixels / 255 - mean) / std.

    The operations are those of torchvision, so that the bits are the same. 255 is a tensor on the device because CUDA
    divides by a number of the host by multiplying with its inverse.
    """
    wide = torch.promote_types(dtype, torch.float32)
    brightest = torch.full((), 255, dtype=wide, device=device)
    mean, std = (_moved(torch.tensor(tuple(values), dtype=wide), device)[:, None, None] for values in (mean, std))
    whole = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)
    filled = 0
    for block in blocks:
        values = block.to(wide).div_(brightest).sub_(mean).div_(std)
        whole[filled : filled + len(block)] = values
        filled += len(block)
    return whole


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor`` on ``device``; from pinned memory, so that the host need not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@cli.command
def main(argv: Sequence[str] | None = None) -> None:
    """Download CIFAR-10, so that runs which start together find it."""
    parser = cli.parser("Download CIFAR-10 and check it; what is there is kept.")
    where = "where to (default: $VARPRO_DATA, or data/ in the repository)"
    parser.add_argument("--data-dir", "--data_dir", type=Path, metavar="DIR", help=where)
    folder = parser.parse_args(argv).data_dir or image_files.folder()
    found = load("cifar10", folder)
    print(f"{len(found.train)} + {len(found.test)} images in {folder}")


if __name__ == "__main__":
    main()
