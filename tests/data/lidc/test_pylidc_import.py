"""pylidc beside today's NumPy and setuptools."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_pylidc_is_imported_without_touching_numpy_or_the_home_directory(tmp_path):
    code = (
        "from lsdm_diffusers.data.lidc import scan_nodules, plan_scans; import numpy as np, sys;"
        "assert not hasattr(np, 'int') and not hasattr(np, 'float');"
        "assert 'pkg_resources' not in sys.modules;"
        "print(len(scan_nodules(1)))"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert int(printed) == 4
    assert not (tmp_path / ".pylidcrc").exists()
