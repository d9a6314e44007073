"""The wheel holds every file of the package, so that the scripts work after an installation that is not editable."""

import subprocess
import sys
import zipfile

import pytest

from .conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone, so the package's files are not known"),
]


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    """Among them the template of the model card, which all four training scripts read when they end."""
    listed = subprocess.run(
        ["git", "ls-files", "lsdm_diffusers"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    source = tmp_path / "source"
    for name in [*listed.stdout.split(), "pyproject.toml", "setup.cfg", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        missing = set(listed.stdout.split()) - set(wheel.namelist())
    assert not missing
    assert "lsdm_diffusers/hub/model_card.md" in listed.stdout.split()
