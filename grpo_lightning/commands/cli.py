"""Lightning's command line: ``python -m grpo_lightning {fit,validate,test,predict} --config run.yaml``."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from grpo_lightning.callbacks import (
    Alarms,
    CompletionWriter,
    EarlierRun,
    HeldOutLine,
    HuggingFaceExport,
    MonitorCheck,
    RunPlan,
    SampleTable,
    SettingsRecord,
    StepBar,
    SystemRecord,
    Tracking,
)
from grpo_lightning.callbacks.earlier_run import check_own_start, checkpoint_folders, newest_checkpoint
from grpo_lightning.callbacks.resume import best_checkpoint, check_named, check_starts_anew, nothing_left
from grpo_lightning.callbacks.run_lock import RunLock
from grpo_lightning.callbacks.saved_config import SavedConfig
from grpo_lightning.commands.module_choice import OPTION, chosen_class, chosen_path, with_one_option
from grpo_lightning.commands.path_options import keep_names
from grpo_lightning.commands.quiet import quiet
from grpo_lightning.commands.usage_errors import Parser
from grpo_lightning.datamodules import GRPODataModule
from grpo_lightning.distributed.accelerators import check_accelerator
from grpo_lightning.distributed.launched_ranks import check_launched, tasks_fault
from grpo_lightning.distributed.launcher import use_early_ranks
from grpo_lightning.distributed.moved_folder import drop_half_written_requeues, wait_for_no_half_written_requeues
from grpo_lightning.distributed.strategies import check_strategy_name
from grpo_lightning.errors import ExplainedError
from grpo_lightning.metrics.diagnostics import LenientCSVLogger, LenientTensorBoardLogger
from grpo_lightning.modules import GRPOModule
from grpo_lightning.modules.checks.optimizer import check_optimization
from grpo_lightning.rewards.text.valid_text import in_words
from grpo_lightning.training.optimization import ADAMW

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/grpo",
    "num_sanity_val_steps": 0,  # it would generate before training; BeforeAfterSummary evaluates first when wanted
    "use_distributed_sampler": False,  # prompts are split over ranks by data.*, in the same order for any rank count
    "log_every_n_steps": 1,  # a step takes seconds, logging it microseconds
    "enable_model_summary": False,  # RunPlan counts parameters; Lightning's table says little of one policy
    "callbacks": [RunPlan(), SystemRecord(), HeldOutLine()],
}


class GRPOCLI(LightningCLI):
    """LightningCLI for GRPO: one seed, checkpoints and logs under ``trainer.default_root_dir``, short errors.

    Added to the Trainer's own options: ``checkpoint.*`` (ModelCheckpoint), ``alarms.*``, ``export.*``,
    ``completions.*`` and ``samples.*``.
    """

    prog = "grpo_lightning"
    module_class: type[LightningModule] = GRPOModule
    defaults = TRAINER_DEFAULTS

    def __init__(self, args: list[str] | None = None, run: bool = True, **kwargs: Any) -> None:
        args = with_one_option(sys.argv[1:] if args is None else args)
        try:
            module_class = chosen_class(chosen_path(args), self.module_class)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from error
        commands = self.subcommands()
        if args and args[0] in commands:  # the parsers of the others would take a second to make
            self.subcommands = lambda: {args[0]: commands[args[0]]}  # type: ignore[method-assign]
        super().__init__(
            module_class,
            GRPODataModule,
            args=args,
            run=run,
            trainer_defaults=self.defaults,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SavedConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"prog": self.prog},
            **kwargs,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Callbacks that every run has, and values that several parts share."""
        parser.add_argument(
            OPTION,
            type=str | None,
            default=None,
            help="Import path of a subclass of the module, such as my.GRPO; or --model.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.every_n_train_steps": 50,
                "checkpoint.save_last": True,
                "checkpoint.save_top_k": 1,
                "checkpoint.enable_version_counter": False,
            }
        )
        adamw = {"class_path": "torch.optim.AdamW", "init_args": ADAMW}  # so that --model.optimizer.lr needs no class
        parser.set_defaults({"model.optimizer": adamw})
        parser.add_lightning_class_args(Alarms, "alarms")
        parser.add_lightning_class_args(HuggingFaceExport, "export")
        parser.add_lightning_class_args(CompletionWriter, "completions")
        parser.add_lightning_class_args(SampleTable, "samples")
        for target in ("model.seed", "data.seed"):
            parser.link_arguments("seed_everything", target, compute_fn=_seed)
        keep_names(parser)

    def _set_seed(self) -> None:
        """Refuses a number that is no seed before Lightning does so with a traceback."""
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool) and not 0 <= seed < 2**32:
            self.parser.error(f"seed_everything={seed} is no seed. Choose a whole number from 0 to {2**32 - 1}.")
        super()._set_seed()

    def _parse_ckpt_path(self) -> None:
        """Takes no settings from a checkpoint, as Lightning would: they are those of the config and the command line."""

    def instantiate_classes(self) -> None:
        """Makes model, data and trainer; a setting they refuse is a usage error, not a traceback."""
        strategy = self._get(self.config, "trainer", default={}).get("strategy")
        try:
            check_strategy_name(str(getattr(strategy, "class_path", strategy)))
            check_accelerator(self._get(self.config, "trainer", default={}).get("accelerator"))
            super().instantiate_classes()
            check_optimization(self.model.optimization.settings, self.trainer if self.subcommand == "fit" else None)
        except (ValueError, ImportError, AttributeError, ExplainedError, MisconfigurationException) as error:
            self.parser.error(in_words(error))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer, its checkpoints and logs in places that a resumed run finds again."""
        config = self._get(self.config_init, "trainer", default={})
        root = config.get("default_root_dir") or os.getcwd()
        if config.get("fast_dev_run"):  # a trial beside the run itself
            root = str(Path(root, "fast_dev_run"))
        if "://" not in str(root):
            root = os.path.abspath(root)  # a reward may change the working directory
        kwargs["default_root_dir"] = root
        if config.get("logger") is not False:
            kwargs["logger"] = with_own_loggers(config.get("logger"), root)
        given = config.get("callbacks") or []
        kinds = {type(callback) for callback in (given if isinstance(given, list) else [given])}
        own = [callback for callback in self.trainer_defaults["callbacks"] if type(callback) not in kinds]
        self.trainer_defaults = self.trainer_defaults | {"callbacks": own}
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except RuntimeError as error:
            if "--ntasks" not in str(error) or (fault := tasks_fault(os.environ)) is None:
                raise
            raise ValueError(fault) from error
        check_launched(trainer)
        use_early_ranks(trainer.strategy)
        bar = trainer.progress_bar_callback
        if type(bar) is RichProgressBar:  # Lightning's default, not one that the config chose
            trainer.callbacks[trainer.callbacks.index(bar)] = StepBar()  # type: ignore[attr-defined]
        first = [SettingsRecord(self._learning_settings()), MonitorCheck()]
        trainer.callbacks[:0] = first  # type: ignore[attr-defined]
        if not any(isinstance(callback, Tracking) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.callbacks.append(Tracking(self._learning_settings()))  # type: ignore[attr-defined]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(root, "checkpoints").absolute())
        return trainer

    def _learning_settings(self) -> dict[str, Any]:
        """What decides what is learnt, from the parsed config."""
        subcommand = str(self.subcommand)
        config = yaml.safe_load(self._parser(subcommand).dump(self.config[subcommand], skip_validation=True))
        return {name: config[name] for name in ("seed_everything", "model", "data") if name in config}

    def before_fit(self) -> None:
        """Neither mixes the run with another in the same folder, nor starts anew unasked."""
        self._check_length()
        root, ckpt_path = Path(self.trainer.default_root_dir), self._get(self.config_init, "ckpt_path")
        check_named(ckpt_path, root, self.model.stage)
        if self.trainer.is_global_zero:
            self._lock = RunLock(root)
            drop_half_written_requeues(root)
        else:
            wait_for_no_half_written_requeues(root)
        is_queued_again = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0  # by SLURM, with the same command
        if ckpt_path in ("last", "best") or (ckpt_path is None and is_queued_again):
            self._find_checkpoint(ckpt_path or "last")
        elif ckpt_path is None:
            check_starts_anew(self.trainer)
            model, adapter = self.model.policy.name_or_path, self.model.policy.settings.adapter_name_or_path
            check_own_start(self.trainer, model_name_or_path=model, adapter_name_or_path=adapter)
        self._earlier_run = EarlierRun()
        self.trainer.callbacks.insert(0, self._earlier_run)  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """The folder is free again; a run that had nothing left to train says why."""
        if self.trainer.is_global_zero:
            self._lock.release()
            if not self._earlier_run.has_started:
                print(nothing_left(self.trainer), flush=True)

    def before_validate(self) -> None:
        """Says whose completions are judged."""
        ckpt_path = self._get(self.config_init, "ckpt_path")
        check_named(ckpt_path, Path(self.trainer.default_root_dir), self.model.stage)
        if ckpt_path in ("last", "best") and self._find_checkpoint(ckpt_path) is None:
            raise ValueError(
                f"--ckpt_path {ckpt_path}: {self.trainer.default_root_dir} has no checkpoint. Leave the option out for "
                f"the weights of {self.model.policy.name_or_path} as they were before training."
            )
        if ckpt_path is None and self.trainer.is_global_zero:
            name = self.model.policy.name_or_path
            print(f"Weights of {name} as they were before training; those of a run with --ckpt_path last.", flush=True)

    before_test = before_predict = before_validate

    def _find_checkpoint(self, word: str) -> Path | None:
        """Puts a path in place of ``last`` or ``best``, and says what there is; None where a run starts anew."""
        root = Path(self.trainer.default_root_dir)
        found = newest_checkpoint(root, checkpoint_folders(self.trainer))
        if word == "best":
            callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            found = best_checkpoint(found, callbacks[0].monitor if callbacks else None)
        if found is None and self.subcommand == "fit" and self.trainer.is_global_zero:
            print(f"--ckpt_path {word}: {root} has no checkpoint. The run starts anew, from step 0.", flush=True)
        elif word == "last" and found is not None and not found.name.startswith(("last", "hpc_ckpt")):
            print(f"--ckpt_path last: there is no last.ckpt; {found} is the newest checkpoint.", flush=True)
        self.config_init[str(self.subcommand)].ckpt_path = None if found is None else str(found)
        return found

    def _check_length(self) -> None:
        """Refuses a run that would train nothing and export weights as they were."""
        for name in ("max_steps", "max_epochs"):
            if getattr(self.trainer, name) == 0:
                raise ValueError(f"trainer.{name}=0 trains nothing. Set 1 or more, or -1 for no limit.")

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; what ends it with an explanation, or is refused before any weights are loaded, shows no traceback."""
        try:
            super()._run_subcommand(subcommand)
        except ExplainedError as error:
            if os.environ.get("JSONARGPARSE_DEBUG") == "true":
                raise
            self.parser.exit(1, "\n".join(["", f"error: {error}", *getattr(error, "__notes__", []), ""]))
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's 1 for it would read as an error
                raise SystemExit(128 + signal.SIGINT) from None
            raise
        except (ValueError, OSError) as error:
            if self.model.policy.is_loaded:
                raise
            self.parser.error(in_words(error))


def with_own_loggers(chosen: Any, root: str) -> list[Logger]:
    """CSV and TensorBoard under ``root``, whose curves the report reads, and whatever else was chosen after them.

    One of these kinds that was chosen takes the place of ours. CSV stays first: where it writes, config.yaml is.
    """
    listed = [] if chosen in (None, True) else list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    csv = next((logger for logger in listed if isinstance(logger, CSVLogger)), None)
    board = next((logger for logger in listed if isinstance(logger, TensorBoardLogger)), None)
    csv = csv or LenientCSVLogger(root, name="logs", flush_logs_every_n_steps=1)  # a killed run keeps its numbers
    if board is None:
        board = LenientTensorBoardLogger(root, name="logs")
        board.beside = csv
    return [csv, board, *(logger for logger in listed if logger is not csv and logger is not board)]


def _seed(seed_everything: bool | int) -> int:
    return int(seed_everything)


def main(args: list[str] | None = None) -> None:
    """Runs fit, validate, test or predict."""
    quiet()
    GRPOCLI(args=args)
