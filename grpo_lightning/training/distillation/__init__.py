"""On-policy distillation: teachers, what they read of a step, and the loss of what they would have done."""

from grpo_lightning.training.distillation.settings import Distillation, TeacherRefusedError

__all__ = ["Distillation", "TeacherRefusedError"]
