"""How fast the explorable follows its slider in Chromium, and the moving picture of it.

    python -m benchmarks.explore                                      # milliseconds of a change of α, and of the curve
    python -m benchmarks.explore --picture docs/figures/explore.webp  # α from 0⁺ to ∞ on the default map

Needs Chromium and, for the picture, Pillow, which matplotlib brings.
"""

import argparse
import base64
import io
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from PIL import Image

from cql import explorable
from tests.browser import Browser

WIDTH, HEIGHT, FRAMES = 1280, 1000, 41
PART = {"x": 268, "y": 118, "width": 992, "height": 1122}  # of the page, in the moving picture


def wait_for_curve(browser: Browser) -> None:
    while not browser.value("document.readyState === 'complete' && Boolean(cache.curve && cache.curve.value.flips)"):
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
    browser = Browser()
    with closing(browser), tempfile.TemporaryDirectory() as folder, browser.page():
        (Path(folder) / "page.html").write_text(explorable.page(), encoding="utf-8")
        browser("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
        browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        browser("Page.navigate", url=(Path(folder) / "page.html").as_uri())
        wait_for_curve(browser)
        if arguments.picture:
            Path(arguments.picture).write_bytes(moving_picture(browser))
            return
        for name, values in timings(browser).items():
            print(f"{name:8} median {statistics.median(values):6.1f} ms, largest {max(values):6.1f} ms, "
                  f"of {len(values)}")


def moving_picture(browser: Browser) -> bytes:
    """α from 0⁺ to ∞ as an animated WebP."""
    frames = []
    for n in range(FRAMES):
        browser.value("new Promise((done) => setTimeout(done, 200), change({ view: 'passing', cell: 172, "
                      f"alpha: alphaAt(SLIDER.min + (SLIDER.max - SLIDER.min) * {n / (FRAMES - 1)}) }}))")
        shot = browser("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={"scale": 1, **PART})
        frame = Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
        frames.append(frame.resize((frame.width * 3 // 4, frame.height * 3 // 4), Image.Resampling.LANCZOS))
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], loop=0, quality=70, method=4,
                   duration=[1500] + [180] * (FRAMES - 2) + [2500])
    return out.getvalue()


if __name__ == "__main__":
    main()
