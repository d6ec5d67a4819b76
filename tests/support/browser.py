"""A real browser: Debian's chromium, steered by selenium, without a screen and without a network of its own."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.support.tools import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver.remote.webelement import WebElement

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # there is none for root, and it loads nothing but our own page
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--hide-scrollbars",
)
PATIENCE = 30.0
"""Seconds until a condition that does not come fails the test."""
_INTERVAL = 0.05


class Browser:
    """A window with one page. All of it blocks, so what the page talks to must be processes of their own."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go to a page. Returns when it has loaded."""
        self.driver.get(url)

    def find(self, selector: str) -> WebElement:
        """The first element there is, at once."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """All elements."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What an element says, also if it is not to be seen; empty if there is none."""
        return self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
        """The condition's value as soon as it is true. Fails the test, naming `what`, if that does not happen."""
        deadline = time.monotonic() + patience
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not happen within {patience:g} s; the console says {self.console()}")
            time.sleep(_INTERVAL)
        return value

    def console(self) -> list[str]:
        """Errors and warnings of the page since the last time, a violation of its policy among them."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def resize(self, width: int, height: int) -> None:
        """As a device of this size would show it."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def screenshot(self, file: Path) -> None:
        """What is in the window, as PNG."""
        assert self.driver.save_screenshot(str(file))


@contextmanager
def browser(profile: Path, *, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser with a fresh profile in `profile`, ended when the context is left. Without chromium the test is
    skipped, saying what to install.
    """
    options = Options()
    options.binary_location = need("chromium", "chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(need("chromedriver", "chromium-driver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
