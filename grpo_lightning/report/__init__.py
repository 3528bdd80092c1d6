"""The report: one self-contained HTML page about one or several runs."""

from grpo_lightning.report.page import render_page
from grpo_lightning.report.run import Run, read_run

__all__ = ["Run", "read_run", "render_page"]
