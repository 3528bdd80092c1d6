"""Writes docs/images/report_desktop.png and report_phone.png: the report page of a run, as Chromium shows it.

python scripts/docs/screenshots.py runs/quickstart
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "report")]  # the browser is that of the page's tests

from browser import open_browser, open_page  # noqa: E402

from grpo_lightning.commands.report import write_report  # noqa: E402

SIZES = {"desktop": (1280, 1000), "phone": (390, 1000)}
"""Width and height of the picture, in pixels."""


def take(run: Path, folder: Path) -> list[Path]:
    """Pictures of a run's page, one for each of ``SIZES``."""
    pictures = []
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch, "report.html")
        write_report([run], page, max_completions=10_000)
        with open_browser(Path(scratch, "profile")) as driver:
            for name, (width, height) in SIZES.items():
                metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": name == "phone"}
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                open_page(driver, page)
                pictures.append(folder / f"report_{name}.png")
                assert driver.save_screenshot(str(pictures[-1]))
    return pictures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder")
    for picture in take(parser.parse_args().run, ROOT / "docs" / "images"):
        print(picture)
