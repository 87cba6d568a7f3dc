"""A real browser, where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
                None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def dumped(address: str, profile: Path) -> str:
    """The document as Chromium has it after its scripts ran.

    Args:
        profile: a folder for what the browser keeps.
    """
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
