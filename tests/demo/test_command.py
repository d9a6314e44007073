"""The command `lsdm-demo`: its help comes before gradio and torch are imported."""

import subprocess
import sys

import pytest

from lsdm_diffusers.demo import command

HEAVY = ("torch", "diffusers", "gradio", "numpy")


def test_help_imports_nothing_heavy():
    script = f"""
import sys
from lsdm_diffusers.demo.command import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
assert not [name for name in {HEAVY} if name in sys.modules]
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "--server_port" in run.stdout


class Demo:
    """In place of gradio's page, which would serve until it is stopped."""

    def block_thread(self):
        pass


@pytest.mark.parametrize("public", [None, "https://x.gradio.live"])
def test_the_page_gets_what_the_command_line_says(monkeypatch, capsys, public):
    page = pytest.importorskip("lsdm_diffusers.demo.page", reason="needs the extra `demo`")
    calls = {}
    monkeypatch.setattr(page, "load_pipeline", lambda path, device: calls.setdefault("load", (path, device)))
    monkeypatch.setattr(page, "build_demo", lambda pipeline: Demo())

    def launch(demo, **arguments):
        calls["launch"] = arguments
        return "app", "http://127.0.0.1:8000/", public

    monkeypatch.setattr(page, "launch", launch)
    command.main(["--pretrained_model_name_or_path", "user/lsdm", "--server_port", "8000", "--device", "cpu"])
    assert calls["load"] == ("user/lsdm", "cpu")
    expected = {"server_name": "127.0.0.1", "server_port": 8000, "share": False}
    assert calls["launch"] == {**expected, "quiet": True, "prevent_thread_lock": True}
    printed = capsys.readouterr().out
    assert printed.index("Loading PyTorch") < printed.index("Loading user/lsdm") < printed.index("Starting the page")
    assert "http://127.0.0.1:8000/" in printed and "share=True" not in printed
    assert (public or "`lsdm-demo --share`") in printed


def test_a_pipeline_that_cannot_be_loaded_is_one_line(monkeypatch):
    page = pytest.importorskip("lsdm_diffusers.demo.page", reason="needs the extra `demo`")

    def fail(path, device):
        raise OSError(f"{path} is no pipeline")

    monkeypatch.setattr(page, "load_pipeline", fail)
    with pytest.raises(SystemExit, match="lsdm-demo: nowhere is no pipeline"):
        command.main(["--pretrained_model_name_or_path", "nowhere"])
