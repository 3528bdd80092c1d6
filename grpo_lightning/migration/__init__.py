"""Configs of TRL and of GRPOArguments in our keys: the tables, and the code that applies them."""

from grpo_lightning.migration.composed import COMPOSED
from grpo_lightning.migration.distillation import DISTILLATION, migrate_distillation
from grpo_lightning.migration.migrate import UNKNOWN, migrate
from grpo_lightning.migration.migration import Migration
from grpo_lightning.migration.names import ALIASES
from grpo_lightning.migration.refused import REFUSED
from grpo_lightning.migration.same import SAME
from grpo_lightning.migration.self_distillation import SELF_DISTILLATION, migrate_self_distillation
from grpo_lightning.migration.source import read_source
from grpo_lightning.migration.stage import STAGES, migrate_stage

__all__ = [
    "ALIASES",
    "COMPOSED",
    "DISTILLATION",
    "REFUSED",
    "SAME",
    "SELF_DISTILLATION",
    "STAGES",
    "UNKNOWN",
    "Migration",
    "migrate",
    "migrate_distillation",
    "migrate_self_distillation",
    "migrate_stage",
    "read_source",
]
