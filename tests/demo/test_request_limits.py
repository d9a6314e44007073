"""Uploaded files go when they have been used."""

import pytest

pytest.importorskip("gradio", reason="needs the extra `demo`")
from lsdm_diffusers.demo.request_limits import Uploads  # noqa: E402


def test_equal_uploads_do_not_take_their_file_from_one_another(tmp_path):
    path = tmp_path / "hash" / "map.png"
    path.parent.mkdir()
    path.write_text("map")
    uploads = Uploads()
    uploads.update([str(path)])
    uploads.update([str(path)])
    uploads.done(str(path))
    assert path.exists()
    with uploads.running():  # perhaps of the same file
        uploads.done(str(path))
        assert path.exists()
        uploads.update([str(path)])
    assert path.exists()
    uploads.done(str(path))
    assert not path.parent.exists() and not uploads
