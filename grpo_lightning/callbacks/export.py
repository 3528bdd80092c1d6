"""Exports the policy in Hugging Face format beside Lightning's checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors import SafetensorError

from grpo_lightning.callbacks.samples import show
from grpo_lightning.callbacks.try_it import shown_path, transformers_lines, typed_path
from grpo_lightning.distributed.moved_folder import part_of, put_in_place
from grpo_lightning.distributed.sharding import is_first_rank, is_sharded
from grpo_lightning.errors import ExplainedError, to_write
from grpo_lightning.finetuning.adapter_files import save_adapter, save_merged
from grpo_lightning.finetuning.adapters import is_adapted
from grpo_lightning.finetuning.whole_checkpoint import complete_checkpoint
from grpo_lightning.version import __version__

MARKER = "grpo_lightning_export.json"
"""In a directory that an export has written, which the next one may replace."""


class ExportNotWrittenError(ExplainedError, OSError):
    """The disk is full, or read-only."""


Form = Literal["merged", "adapter"]


class HuggingFaceExport(Callback):
    """Writes the policy and tokenizer as directories that ``from_pretrained`` and vLLM load.

    ``last`` holds the whole model, adapters added in; under lora and qlora ``last-adapter`` holds the adapter alone,
    with the identity of the base that it belongs to. A directory appears under its name only when it is complete; one
    that is being replaced stays until then.

    Args:
        dirpath: Where to; by default ``hf`` in trainer.default_root_dir.
        every_n_steps: Also export every so many GRPO steps, into ``step-N``; 0 for the end of training only.
        forms: merged, adapter, or both in a list; by default what the finetuning type has.
    """

    def __init__(self, dirpath: str | None = None, every_n_steps: int = 0, forms: list[Form] | None = None) -> None:
        self.dirpath = None if dirpath is None else os.path.abspath(dirpath)
        self.every_n_steps = every_n_steps
        self.forms = forms
        if forms is not None and (not forms or set(forms) - {"merged", "adapter"}):
            raise ValueError(f"export.forms={forms!r}: list merged, adapter, or both.")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses to export an adapter that will not exist, or to where a file is, before weights load.

        Raises:
            ValueError: In the words of the config.
            FileExistsError: Naming the file.
        """
        policy: Any = getattr(pl_module, "policy", None)
        if self.forms and "adapter" in self.forms and policy is not None and not policy.settings.has_adapters:
            raise ValueError(
                "export.forms has adapter, but model.finetuning_type=full trains none. Leave it out, or set "
                "model.finetuning_type to lora or qlora."
            )
        if stage == "fit":
            check_no_file(*self._places(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a merged export that cannot be made, before the first step.

        Raises:
            ExplainedError: In the words of the config.
        """
        for name, layer in pl_module.named_modules():
            has_bias = any(getattr(layer, "lora_bias", {}).values())
            if has_bias and layer.get_base_layer().bias is None and "merged" in (self.forms or ["merged"]):
                raise ExplainedError(
                    f"lora_bias: true gives {name} a bias, which the layer of the base model cannot hold, so that the "
                    "adapter cannot be merged. Leave it out of model.peft_config, or set export.forms=[adapter]."
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to replace a directory of the user's own, once an earlier run is put aside.

        Raises:
            ExplainedError: Naming it.
        """
        if not trainer.is_global_zero:
            return
        try:
            check_free(*self._places(trainer))
        except FileExistsError as error:
            raise ExplainedError(str(error)) from error

    def _places(self, trainer: Trainer) -> list[Path]:
        """Where it will write, as far as something may be there."""
        root = self.root(trainer)
        at_steps = root.glob("step-[0-9]*") if self.every_n_steps else ()
        return [root / "last", root / "last-adapter", *(path for path in at_steps if _is_of_a_step(path))]

    def root(self, trainer: Trainer) -> Path:
        """Where the directories are."""
        return Path(self.dirpath) if self.dirpath else Path(trainer.default_root_dir) / "hf"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Exports at the chosen steps."""
        step: int = pl_module.steps_done  # type: ignore[assignment]
        if self.every_n_steps and step % self.every_n_steps == 0:
            export(pl_module, self.root(trainer) / f"step-{step}", trainer.is_global_zero, self.forms)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the final policy into ``last`` and ``last-adapter``, and says on the first rank what to do with it."""
        path = self.root(trainer) / "last"
        export(pl_module, path, trainer.is_global_zero, self.forms)
        if trainer.is_global_zero and path.exists():
            report = f"`python -m grpo_lightning report {typed_path(trainer.default_root_dir)}` draws the run."
            show(f"{pl_module.use_of_export(Path(shown_path(path)))} {report}")  # type: ignore[operator]  # of PolicyModule
            last_step = getattr(pl_module, "last_step", None)
            # A pipeline of text cannot show an image.
            if last_step is not None and last_step.batch.prompts and not last_step.batch.images:
                longest: int = pl_module.sampling.max_completion_length  # type: ignore[assignment, union-attr]
                show("In Python:\n" + transformers_lines(path, last_step.batch.prompts[0], longest))


def check_no_file(*paths: Path) -> None:
    """Refuses places of directories where files are, which may be the user's own.

    Raises:
        FileExistsError: Naming the file.
    """
    for path in paths:
        if path.exists() and not path.is_dir():
            raise FileExistsError(
                f"{path} is a file, and an export writes a directory. Name another place, or move the file away."
            )


def check_free(*paths: Path) -> None:
    """Refuses places where a file is, or a directory that no export has written: a model of the user's own, for one.

    One without a marker, as earlier versions wrote them, may be replaced in ``hf`` of a run. A link is replaced, not where it leads.

    Raises:
        FileExistsError: Naming it, and what to do.
    """
    check_no_file(*paths)
    for path in paths:
        if path.is_symlink() or not path.is_dir() or not (names := {each.name for each in path.iterdir()}):
            continue
        is_of_a_run = path.absolute().parent.name == "hf" and names & {"config.json", "adapter_config.json"}
        if MARKER not in names and not is_of_a_run:
            raise FileExistsError(
                f"{path} is a directory that no export has written (it has no {MARKER}), and an export takes the place of what is "
                "there. Name another place, or move the directory away; an export of an earlier version may be removed."
            )


def _is_of_a_step(path: Path) -> bool:
    return path.name.removeprefix("step-").removesuffix("-adapter").isdecimal()


def export(
    module: Any, path: Path, is_writer: bool = True, forms: list[Form] | None = None, adapter_path: Path | None = None
) -> None:
    """Writes model and tokenizer of ``module.policy`` to ``path``, the adapter alone to ``adapter_path``.

    Args:
        module: Whatever has a Policy with weights.
        path: Each directory is written whole or not at all.
        is_writer: False on all ranks but the first.
        forms: See HuggingFaceExport.
        adapter_path: By default ``path-adapter``.
    """
    policy, tokenizer, images = module.policy.model, module.policy.tokenizer, module.policy.image_processing
    reader = tokenizer if images is None else images.processor  # which brings the tokenizer along
    in_parts = is_sharded(policy)
    if not is_writer and not in_parts:
        return
    if forms is None or "merged" in forms:
        save = save_merged if is_adapted(policy) or in_parts else _save_full
        _write_whole(path, reader, _save_with_the_rest, policy, save, module.policy.name_or_path)
    if is_adapted(policy) and (forms is None or "adapter" in forms):
        beside = path.with_name(path.name + "-adapter") if adapter_path is None else adapter_path
        _write_whole(beside, reader, save_adapter, policy, module.policy.name_or_path)


def _save_with_the_rest(policy: Any, path: Path, save: Callable[..., None], model_name_or_path: str) -> None:
    """The model as ``save`` writes it, then what was not trained of the checkpoint that it came from."""
    save(policy, path)
    if is_first_rank():
        complete_checkpoint(path, model_name_or_path)


def _save_full(policy: Any, path: Path) -> None:
    policy.save_pretrained(path)


def _write_whole(path: Path, reader: Any, save: Callable[..., None], policy: Any, *arguments: Any) -> None:
    """Fills a directory beside ``path``, then renames it."""
    part = part_of(path)
    if not is_first_rank():  # takes part in gathering the weights
        save(policy, part, *arguments)
        return
    try:
        check_free(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        save(policy, part, *arguments)
        reader.save_pretrained(part)
        (part / MARKER).write_text(json.dumps({"version": __version__}) + "\n", encoding="utf-8")
        put_in_place(path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if not isinstance(error, OSError | SafetensorError):  # Ctrl-C, for one
            raise
        form = " --form adapter" if save is save_adapter else ""
        raise ExportNotWrittenError(
            f"The export {path} could not be written ({error}). "
            f"{to_write(error, 'Free disk space, or make its folder writable')}; then "
            f"`python -m grpo_lightning export RUN_DIR {path}{form}` writes it from the run's checkpoint."
        ) from error
