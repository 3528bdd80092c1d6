"""Takes uPlot (MIT) out of its npm package into grpo_lightning/report/vendor/uplot; needs npm.

    python scripts/report/vendor_uplot.py

The package's version is pinned here; the checksums of what was taken are written beside it and tested.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.6.32"
FILES = {"dist/uPlot.iife.min.js": "uPlot.js", "dist/uPlot.min.css": "uPlot.css", "LICENSE": "LICENSE"}
TARGET = Path(__file__).parents[2] / "grpo_lightning" / "report" / "vendor" / "uplot"


def main() -> None:
    checksums = {}
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["npm", "pack", f"uplot@{VERSION}", "--silent"], cwd=directory, check=True)
        (archive,) = Path(directory).glob("uplot-*.tgz")
        with tarfile.open(archive) as package:
            for source, name in FILES.items():
                member = package.extractfile(f"package/{source}")
                assert member is not None, f"uplot@{VERSION} has no {source}"
                content = member.read()
                TARGET.mkdir(parents=True, exist_ok=True)
                (TARGET / name).write_bytes(content)
                checksums[name] = hashlib.sha256(content).hexdigest()
    manifest = {"package": "uplot", "version": VERSION, "license": "MIT", "sha256": checksums}
    (TARGET / "package.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
