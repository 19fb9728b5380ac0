"""How functions are compiled: numba's flags, and a cache that knows all the sources that a function was made of.

numba keeps the machine code of a function as long as the file that the function stands in is unchanged. Functions that
it inlines from other files are not looked at. Here the key is the content of the file, of every compiled file of this
package that it imports, and of those that it imports CONSTANTS from by name, which become part of the code: so that a
change anywhere below is seen, and a mere touch is not.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from numba import njit
from numba.core import caching
from numba.core.dispatcher import Dispatcher
from numba.np.ufunc.parallel import _launch_threads

FUSED = {"contract", "nsz"}  # fused multiply-adds; NaN and infinity keep their meaning
VECTORISED = {"contract", "nsz", "reassoc"}  # sums in any order, for reductions

_PACKAGE = Path(__file__).parent
_IMPORTS = re.compile(r"^from (varpro[.\w]*) import (?:\(([^)]*)\)|([^(\n]+))", re.MULTILINE)


def compiled(**flags) -> Callable[[Callable], Dispatcher]:
    """``numba.njit`` with these flags, numpy's rules for division unless they say otherwise, and our cache."""

    def decorate(function: Callable) -> Dispatcher:
        dispatcher = njit(**{"error_model": "numpy"} | flags)(function)
        with suppress(RuntimeError):  # neither source tree nor home folder can be written: compiled in every process
            dispatcher._cache = _FunctionCache(function)
        return dispatcher

    return decorate


def in_cache(function: Dispatcher, mentioning: str = "") -> bool:
    """Whether ``function`` loads in a moment, for argument types whose names contain ``mentioning``.

    What other processors left in a shared cache is not for this one.
    """
    index, here = getattr(function._cache, "_cache_file", None), function.targetctx.codegen().magic_tuple()
    return index is not None and any(mentioning in str(key[0]) and key[1] == here for key in index._load_index())


def is_kept(function: Dispatcher) -> bool:
    """Whether what is compiled of ``function`` goes to a cache, which has to be writable somewhere."""
    return hasattr(function._cache, "_cache_file")


@cache
def _stamp(path: Path) -> str:
    """A hash of the file and of all files of this package that its machine code is made of."""
    digest = hashlib.sha256()
    for source in sorted(_sources(path, set())):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _sources(path: Path, seen: set[Path]) -> set[Path]:
    if path in seen:
        return seen
    text = path.read_text(encoding="utf-8")
    if "numba" in text or "varpro.compiled" in text:
        seen.add(path)
        for other, has_constants in _imported(text):
            if has_constants:
                seen.add(other)
            _sources(other, seen)
    return seen


def _imported(text: str) -> Iterator[tuple[Path, bool]]:
    """The files of this package that a source imports from, and whether it imports constants by name."""
    for module, several, few in _IMPORTS.findall(text):
        base = _PACKAGE.joinpath(*module.split(".")[1:])
        names = re.findall(r"\w+", several or few.partition("#")[0])
        for candidate, named in ((base, names), *((base / name, []) for name in names)):
            if candidate.with_suffix(".py").is_file():
                yield candidate.with_suffix(".py"), any(name.isupper() for name in named)


def _by_all_sources(locator: type) -> type:
    """numba's ``locator`` of the folder of a cache, with the stamp of this module."""

    class ByAllSources(locator):
        def get_source_stamp(self) -> str:
            return _stamp(Path(self._py_file))

    return ByAllSources


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = tuple(
        map(
            _by_all_sources,
            (caching.UserProvidedCacheLocator, caching.InTreeCacheLocator, caching.UserWideCacheLocator),
        )
    )


def _launch_runtime() -> None:
    """numba's parallel runtime, with torch's number of threads as it was: both libraries have it from OpenMP."""
    torch = sys.modules.get("torch")
    usual = None if torch is None else torch.get_num_threads()
    _launch_threads()
    if torch is not None:
        torch.set_num_threads(usual)


class _FunctionCache(caching.FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig, target_context):
        # A function compiled while what it calls came from the cache forgets that this may need the parallel runtime;
        # without it, loading such a function alone would call into nothing.
        _launch_runtime()
        return super().load_overload(sig, target_context)
