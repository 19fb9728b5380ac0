"""Fixtures and helpers shared by the tests."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# No deadlines, since machines are shared; the same examples every time, unless asked otherwise.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def load_script(path: str) -> ModuleType:
    """A script of the repository as a module, by its path from the top; nothing of it runs but its definitions."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
