"""Result files: atomic writing, safe reading, provenance (docs/definitions.md, 7); names are those of varpro/names.py.

One ``.pt`` file per run holds plain tensors, numbers, strings, dicts and lists. It is read with
``torch.load(weights_only=True)``: nothing in it can execute code.
"""

import glob
import os
import platform
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from varpro import installed_version
from varpro.names import ROOT

_UNFINISHED = ".tmp"  # suffix of a file that is being written
_PACKAGES = ("torch", "numpy", "scipy", "numba")


class ResultError(Exception):
    """A result file is missing, unreadable, or belongs to another run; the message is one line for the user."""


def save_result(path: Path, contents: Mapping[str, Any]) -> None:
    """As :func:`save`, for what others will rely on. Raises FloatingPointError naming the entry that is not finite."""
    bad = _not_finite(contents)
    if bad:
        raise FloatingPointError(f"{bad!r} is not finite, {path} is not written; try a smaller --time_scale")
    save(path, contents)


def _not_finite(value: Any, name: str = "") -> str:
    """The name of the first tensor in ``value`` that holds NaN or infinity, or ``""``."""
    if isinstance(value, torch.Tensor):
        return "" if torch.isfinite(value).all() else name
    if isinstance(value, Mapping):
        return next(filter(None, (_not_finite(item, str(key)) for key, item in value.items())), "")
    if isinstance(value, list):
        return next(filter(None, (_not_finite(item, name) for item in value)), "")
    return ""


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """Write ``contents`` to ``path`` in one step (:func:`replacing`)."""
    with replacing(path) as file:
        stream = _Stream(file)
        try:
            torch.save(_compact(contents), cast("IO[bytes]", stream))
        except RuntimeError:  # torch's writer hides what went wrong below it
            if stream.error is None:
                raise
            raise stream.error from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` at the end: readers see the old file or the whole new one.

    Raises ResultError where it cannot be written; what was there is still there then.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ResultError(f"{path}: cannot be written: {error.strerror}; what was there is kept") from None


class _Stream:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def prepare(path: Path) -> None:
    """Make sure that ``path`` can be written, before hours go into what it will hold.

    Creates its folder. Raises ResultError where the folder cannot be made or written to, or the name is too long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        longest = checkpoint(path).name  # of the files that a run writes there
        handle, trial = tempfile.mkstemp(dir=path.parent, prefix=f".{longest}.", suffix=_UNFINISHED)
        os.close(handle)
        Path(trial).unlink(missing_ok=True)  # who holds the lock may have swept it
    except OSError as error:
        raise ResultError(f"{path}: cannot be written there: {error.strerror}; see --output and --name") from None


def checkpoint(path: Path) -> Path:
    """The file from which the stopped run of the result ``path`` goes on."""
    return path.with_suffix(".checkpoint")


def unfinished(path: Path) -> list[Path]:
    """What killed processes left of saves of ``path`` and of its checkpoint."""
    named = (path, checkpoint(path))
    return [left for name in named for left in path.parent.glob(f".{glob.escape(name.name)}.*{_UNFINISHED}")]


def sweep(path: Path) -> None:
    """Remove what is :func:`unfinished`. To be called by who holds the lock of ``path``."""
    for left in unfinished(path):
        left.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _compact(value: Any) -> Any:
    """Tensors detached, on the CPU and with a storage of their own (a view would save all it is a view of)."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().clone()
    if isinstance(value, Mapping):
        return {key: _compact(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    return value


def load(path: Path) -> dict[str, Any]:
    """The contents of a result file, tensors on the CPU. Raises ResultError where it is missing or not readable."""
    if not Path(path).is_file():
        raise ResultError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the library; what matters of them becomes one line below
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; for the reader they all mean the same
        raise ResultError(
            f"{path}: not a file of tensors that torch.load can read safely ({type(error).__name__})"
        ) from None
    if not isinstance(contents, dict):
        raise ResultError(f"{path}: holds a {type(contents).__name__}, not a dict of tensors")
    return contents


def complete(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether ``path`` holds the result of ``config``. Raises ResultError where it holds another run's."""
    if not os.path.exists(path):  # also where the name is too long for any file
        return False
    found = load(path).get("config")
    difference = differing(found, config)
    if difference:
        raise ResultError(f"{path} was made with {difference}; use --name or --output, or --force to replace it")
    return True


def differing(found: Any, config: Mapping[str, Any]) -> str:
    """``"seed = 1, not 0"``, the first entry in which what a file has as its config is not ``config``; "" if none."""
    found = found if isinstance(found, Mapping) else {}
    for key, value in config.items():
        own = found.get(key)
        if isinstance(own, torch.Tensor) or own != value:
            return f"{key} = {'a tensor' if isinstance(own, torch.Tensor) else own}, not {value}"
    return ""


def provenance(device: str) -> dict[str, str]:
    """What made a result: versions, git revision, device, platform."""
    return {
        **{package: installed_version(package) for package in (*_PACKAGES, "varpro")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "git_revision": _git_revision(),
    }


def _git_revision() -> str:
    """The commit of the repository, with ``+changes`` where files differ from it or Python files are new; ``unknown``
    without git."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no") or git("status", "--porcelain", "--", "*.py")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
