"""Headless Chromium for tests; skipped only where there is none."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

needs_chromium = pytest.mark.skipif(CHROMIUM is None or CHROMEDRIVER is None, reason="chromium is not installed")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser(profile: Path) -> Iterator[Any]:
    """A browser with an empty profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--user-data-dir={profile}", "--window-size=1400,1000"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: Any, path: Path) -> None:
    """Opens a report and waits until it is drawn."""
    driver.get(path.as_uri())
    wait(driver, "document.body.dataset.ready === 'yes'")


def wait(driver: Any, condition: str, seconds: float = 60.0) -> None:
    """Waits for a JavaScript expression to hold; hangs are the only thing the limit is for."""
    deadline = time.monotonic() + seconds
    while not driver.execute_script(f"return {condition}"):
        if time.monotonic() > deadline:
            raise AssertionError(f"never true: {condition}; console: {driver.get_log('browser')}")
        time.sleep(0.02)


def console_errors(driver: Any) -> list[str]:
    """What the page complained about."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def texts(driver: Any, selector: str) -> list[str]:
    """Visible texts of the elements."""
    script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => e.textContent)"
    return driver.execute_script(script, selector)


def type_into(driver: Any, selector: str, text: str) -> None:
    """Sets an input as a user's typing would."""
    script = """const field = document.querySelector(arguments[0]);
    field.value = arguments[1];
    field.dispatchEvent(new Event("input", {bubbles: true}));"""
    driver.execute_script(script, selector, text)
