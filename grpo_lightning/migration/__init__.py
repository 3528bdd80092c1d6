"""TRL's and the seeds' settings -> ours: the table, and the code that applies it to a config."""

from grpo_lightning.migration.migrate import migrate
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.source import read_source
from grpo_lightning.migration.table import COMPOSED, REFUSED, SAME

__all__ = ["COMPOSED", "Migration", "REFUSED", "SAME", "migrate", "read_source"]
