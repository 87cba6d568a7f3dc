"""A real browser, where there is one: started once, and asked for one page after another."""

import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
                None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


class Browser:
    """Headless Chromium with one page at a time, spoken to by the DevTools protocol over a pair of pipes."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read, self.write = os.pipe()
        self.read, write = os.pipe()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
                   "--disable-background-networking", "--disable-component-update", "--disable-sync",
                   "--remote-debugging-pipe", f"--user-data-dir={self.profile.name}", "about:blank"]
        # Chromium reads from file descriptor 3 and writes to 4
        shell = ["bash", "-c", f'exec 3<&{read} 4>&{write}; exec "$@"', "chromium", *command]
        self.process = subprocess.Popen(shell, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        os.close(read), os.close(write)
        self.left, self.number, self.session = b"", 0, None

    @contextmanager
    def page(self) -> Iterator[None]:
        """Within it there is an empty page, which knows nothing of others."""
        context = self("Target.createBrowserContext")
        target = self("Target.createTarget", url="about:blank", **context)["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        try:
            yield
        finally:
            self.session = None
            self("Target.disposeBrowserContext", **context)

    def __call__(self, method: str, until: str | None = None, **parameters) -> dict:
        """The result of a command of the protocol, once there was the event ``until`` too, if one is given."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        result = None
        while result is None or until:
            while b"\0" not in self.left:
                if not select.select([self.read], [], [], 120)[0]:
                    raise TimeoutError(f"Chromium does not answer to {method}")
                self.left += os.read(self.read, 2**20)
            text, self.left = self.left.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("method") == until:
                until = None
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result = answer["result"]
        return result

    def value(self, expression: str):
        """The value of an expression, or what the promise gives."""
        answer = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.profile.cleanup()


started = cache(Browser)


def dumped(address: str, ready: str = "true") -> str:
    """The document as Chromium has it after its scripts ran for two seconds of its own time, or more until ``ready``.

    Args:
        ready: an expression; on a busy machine a page may not have drawn a frame by then.
    """
    browser = started()
    with browser.page():
        browser("Emulation.setVirtualTimePolicy", policy="pause")
        browser("Page.navigate", url=address)
        for _ in range(30):
            browser("Emulation.setVirtualTimePolicy", policy="pauseIfNetworkFetchesPending", budget=2000,
                    maxVirtualTimeTaskStarvationCount=9999, until="Emulation.virtualTimeBudgetExpired")
            if browser.value(f"document.readyState === 'complete' && Boolean({ready})"):
                return browser.value("document.documentElement.outerHTML")
    raise TimeoutError(f"{address} does not come to {ready}")
