"""How fast the explorable follows its slider in Chromium, and the moving picture of it.

    python -m benchmarks.explore                                      # milliseconds of a change of α, and of the curve
    python -m benchmarks.explore --picture docs/figures/explore.webp  # α from 0⁺ to ∞ on the default map

Needs Chromium and, for the picture, Pillow, which matplotlib brings.
"""

import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image

from cql import explorable
from tests.browser import CHROMIUM

WIDTH, HEIGHT, FRAMES = 1280, 1000, 41
PART = {"x": 268, "y": 118, "width": 992, "height": 1122}  # of the page, in the moving picture


class Browser:
    """A page in headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

    def __init__(self, address: str, profile: str, width: int = WIDTH, height: int = HEIGHT, dark: bool = False):
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   "--remote-debugging-pipe",
                   f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads from file descriptor 3 and writes to 4
        shell = ["bash", "-c", f'exec 3<&{read} 4>&{write}; exec "$@"', "chromium", *command]
        self.process = subprocess.Popen(shell, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read), os.close(write)
        self.left, self.number, self.session = b"", 0, None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=address)
        while self.value("document.readyState") != "complete":
            time.sleep(0.1)

    def __call__(self, method: str, **parameters) -> dict:
        """The result of a command of the protocol."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.left:
                self.left += os.read(self.read, 2**20)
            text, self.left = self.left.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def value(self, expression: str):
        """The value of an expression, or what the promise gives."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def picture(self, **clip) -> bytes:
        """A screenshot as PNG, of the whole window or of x, y, width, height."""
        part = {"clip": {"scale": 1, **clip}} if clip else {}
        answer = self("Page.captureScreenshot", format="png", captureBeyondViewport=True, **part)
        return base64.b64decode(answer["data"])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def wait_for_curve(browser: Browser) -> None:
    while not browser.value("Boolean(cache.curve && cache.curve.value.flips)"):
        time.sleep(0.1)


def timings(browser: Browser) -> dict:
    """Milliseconds: of a change of α, solving alone and all of it with drawing; of other data; of the curve.

    The first curve is the one that a page computes while it opens.
    """
    script = """(async () => {
        const all = [], solving = [], curves = [], news = [];
        const first = [cache.curve.value.milliseconds];
        for (let position = SLIDER.min; position <= SLIDER.max; position += 0.05) {
            state.alpha = alphaAt(position);
            const began = performance.now();
            render();
            all.push(performance.now() - began);
            solving.push(now.milliseconds);
            await new Promise((done) => setTimeout(done));
        }
        for (let seed = 100; seed < 106; seed++) {
            state.seed = seed;
            const began = performance.now();
            render();
            news.push(performance.now() - began);
            while (!cache.curve.value.flips) await new Promise((done) => setTimeout(done, 50));
            curves.push(cache.curve.value.milliseconds);
        }
        return { solving, all, news, curves, first };
    })()"""
    return browser.value(script)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", metavar="FILE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(explorable.page(), encoding="utf-8")
        browser = Browser((Path(folder) / "page.html").as_uri(), f"{folder}/profile")
        try:
            wait_for_curve(browser)
            if arguments.picture:
                Path(arguments.picture).write_bytes(moving_picture(browser))
                return
            for name, values in timings(browser).items():
                print(f"{name:8} median {statistics.median(values):6.1f} ms, largest {max(values):6.1f} ms, "
                      f"of {len(values)}")
        finally:
            browser.close()


def moving_picture(browser: Browser) -> bytes:
    """α from 0⁺ to ∞ as an animated WebP."""
    frames = []
    for n in range(FRAMES):
        browser.value("new Promise((done) => setTimeout(done, 200), change({ view: 'passing', cell: 172, "
                      f"alpha: alphaAt(SLIDER.min + (SLIDER.max - SLIDER.min) * {n / (FRAMES - 1)}) }}))")
        frame = Image.open(io.BytesIO(browser.picture(**PART))).convert("RGB")
        frames.append(frame.resize((frame.width * 3 // 4, frame.height * 3 // 4), Image.Resampling.LANCZOS))
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], loop=0, quality=70, method=4,
                   duration=[1500] + [180] * (FRAMES - 2) + [2500])
    return out.getvalue()


if __name__ == "__main__":
    main()
