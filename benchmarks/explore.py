"""Draws the moving picture of the explorable, α from 0⁺ to ∞ on the default map: python -m benchmarks.explore

Needs Chromium, and Pillow, which matplotlib brings.
"""

import base64
import io
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image

from cql import explorable
from tests.browser import CHROMIUM

OUT = Path(__file__).parent.parent / "docs/figures/explore.webp"
PART = {"x": 268, "y": 118, "width": 992, "height": 1122, "scale": 0.75}  # of the page, in the moving picture
FRAMES = 41


class Browser:
    """A page in headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

    def __init__(self, address: str, profile: str):
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads from file descriptor 3 and writes to 4
        shell = ["bash", "-c", f'exec 3<&{read} 4>&{write}; exec "$@"', "chromium", *command]
        self.process = subprocess.Popen(shell, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        self.left, self.number, self.session = b"", 0, {}
        target = self("Target.createTarget", url=address)["targetId"]
        self.session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self("Emulation.setDeviceMetricsOverride", width=1280, height=1000, deviceScaleFactor=1, mobile=False)

    def __call__(self, method: str, **parameters) -> dict:
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.left:
                self.left += os.read(self.read, 2**20)
            text, self.left = self.left.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.number:
                return answer["result"]

    def value(self, expression: str):
        """The value of an expression, or what the promise gives; None if it fails."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")


def frame(browser: Browser, position: float) -> Image.Image:
    """What the page shows with its slider at this share of its length."""
    browser.value("new Promise((done) => setTimeout(done, 200), change({ view: 'passing', cell: 172, "
                  f"alpha: alphaAt(SLIDER.min + (SLIDER.max - SLIDER.min) * {position}) }}))")
    shot = browser("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=PART)
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(explorable.page(), encoding="utf-8")
        browser = Browser(page.as_uri(), f"{folder}/profile")
        try:
            while not browser.value("Boolean(cache.curve && cache.curve.value.flips)"):
                time.sleep(0.1)
            frames = [frame(browser, n / (FRAMES - 1)) for n in range(FRAMES)]
        finally:
            browser.process.terminate()
            browser.process.wait()
        frames[0].save(OUT, "WEBP", save_all=True, append_images=frames[1:], loop=0, quality=70, method=4,
                       duration=[1500] + [180] * (FRAMES - 2) + [2500])


if __name__ == "__main__":
    main()
