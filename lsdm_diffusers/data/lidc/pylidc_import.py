"""pylidc 0.2.3 beside today's libraries.

The last release of pylidc asks for names that are gone: `pkg_resources` (setuptools 81 dropped it) while it is imported, and `np.int`,
`np.float` and `np.bool` (NumPy 1.24) when it turns contours into masks. They are supplied to pylidc alone: a stand-in module during the
import, and, in pylidc's own modules, a view of NumPy that still has them. NumPy and setuptools themselves stay as they are.

Only pylidc's database is used, which ships inside it. Its DICOM reader is not: that one looks for `~/.pylidcrc` and writes it.
"""

import importlib
import importlib.resources
import sys
import types
import warnings

import numpy as np


class _NumPyWithOldNames(types.ModuleType):
    int, float, bool = int, float, bool

    def __getattr__(self, name):
        return getattr(np, name)


def import_pylidc():
    """The module `pylidc`, ready for queries, clustering and consensus masks.

    Raises:
        ImportError: if pylidc is not installed; `pip install "lsdm_diffusers[train]"` brings it.
    """
    if "pylidc.utils" not in sys.modules:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_filename = lambda package, name: str(importlib.resources.files(package) / name)
        before = sys.modules.get("pkg_resources")
        sys.modules["pkg_resources"] = stand_in
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # pylidc's own, of SciPy's and SQLAlchemy's older names
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
            module.np = old_names
    return sys.modules["pylidc"]
