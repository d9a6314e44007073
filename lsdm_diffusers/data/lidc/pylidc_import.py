"""Import pylidc 0.2.3 beside today's libraries.

The last release of pylidc needs names that are gone: `pkg_resources` (dropped by setuptools 81) while it is imported,
and `np.int`, `np.float` and `np.bool` (dropped by NumPy 1.24) when it turns contours into masks. This module gives
them to pylidc alone: a stand-in for `pkg_resources` during the import, and a view of NumPy with the old names in
pylidc's own modules. NumPy and setuptools themselves stay as they are.

Only pylidc's database is used, which ships inside it. Its DICOM reader is not used: it looks for `~/.pylidcrc` and
writes that file.
"""

import importlib
import importlib.resources
import sys
import types
import warnings
from typing import Any

import numpy as np


class _NumPyWithOldNames(types.ModuleType):
    int, float, bool = int, float, bool

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def import_pylidc() -> types.ModuleType:
    """Import `pylidc`, ready for queries, clustering and consensus masks.

    Raises:
        ImportError: if pylidc is not installed; `pip install "lsdm_diffusers[train]"` brings it.
    """
    if "pylidc.utils" not in sys.modules:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_filename = _resource_filename  # type: ignore[attr-defined]  # a module takes any attribute
        before = sys.modules.get("pkg_resources")
        sys.modules["pkg_resources"] = stand_in
        try:
            with warnings.catch_warnings():
                # pylidc uses older names of SciPy and SQLAlchemy
                warnings.simplefilter("ignore", DeprecationWarning)
                importlib.import_module("pylidc.utils")
        except ImportError as error:
            raise ImportError(
                f'pylidc cannot be imported ({error}); `pip install "lsdm_diffusers[train]"` brings it.'
            ) from error
        finally:
            del sys.modules["pkg_resources"]
            if before is not None:
                sys.modules["pkg_resources"] = before
    old_names = _NumPyWithOldNames("numpy")
    for name, module in list(sys.modules.items()):
        if name.startswith("pylidc.") and getattr(module, "np", None) is np:
            module.np = old_names  # type: ignore[attr-defined]  # a module takes any attribute
    return sys.modules["pylidc"]


def _resource_filename(package: str, name: str) -> str:
    return str(importlib.resources.files(package) / name)
