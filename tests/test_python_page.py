"""docs/python.md is a session that runs as it stands."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parent.parent / "docs/python.md").read_text()


def test_the_session_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/python.md", "exec"), session)
    assert (tmp_path / "policy.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "runs/notebook/evaluation.json").exists()
    assert len(PAGE.splitlines()) <= 80
