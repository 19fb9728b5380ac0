"""Where the images of CIFAR-10 lie on the disk: in class folders, in tables, or in the official archive.

The scripts that read them and the grid that asks what is at hand both look here. Nothing here needs PyTorch.
"""

import os
from pathlib import Path

from varpro import names

DATA = "VARPRO_DATA"  # environment variable (make: DATA_DIR): the folder of CIFAR-10
PARTS = ("train", "test")
ARCHIVE = "cifar-10-python.tar.gz"


def folder() -> Path:
    """The folder of CIFAR-10, also of what is downloaded: ``$VARPRO_DATA``, or ``data/`` of the repository."""
    return Path(os.environ.get(DATA) or names.ROOT / "data")


def unpacked(where: Path) -> Path:
    """A file of the official archive that ``where`` holds once it is unpacked there; it stands for all of them."""
    return where / "cifar-10-batches-py" / "batches.meta"


def in_folders(where: Path) -> bool:
    """Whether ``where`` holds class folders, or some of them, or tables: then these count, and not the archive."""
    return any((where / part).is_dir() for part in PARTS) or bool(table_files(where))


def at_hand(where: Path) -> bool:
    """Whether ``where`` holds CIFAR-10 in one of the three ways, so that nothing has to be downloaded."""
    complete = all((where / part).is_dir() for part in PARTS) or bool(table_files(where))
    return complete or (not in_folders(where) and (unpacked(where).exists() or (where / ARCHIVE).exists()))


def table_files(where: Path) -> dict[str, list[Path]]:
    """The parquet files, in ``where`` or the folders in it, whose names begin with ``train`` and ``test``; {} unless
    there are both."""
    patterns = {part: (f"{part}*.parquet", f"*/{part}*.parquet") for part in PARTS}
    found = {part: sorted(path for each in both for path in where.glob(each)) for part, both in patterns.items()}
    return found if all(found.values()) else {}
