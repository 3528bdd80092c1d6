"""Commands beside Lightning's. Each is a module with ``main(args) -> int``, the exit status; stages share one."""

COMMANDS = {
    "chat": "types prompts to a trained policy and reads its completions",
    "dpo": "trains on completions that people preferred to others",
    "env": "plays an episode of an environment, or checks its class; no GPU",
    "export": "writes the policy of any checkpoint in Hugging Face format",
    "migrate": "turns a config of TRL into one of grpo_lightning",
    "report": "writes one HTML page about one or several runs",
    "rewards": "lists rewards; rewards try shows what a completion would earn",
    "rm": "trains a reward model on completions that people preferred to others",
    "serve": "runs a vLLM server for model.generator: VLLMServer",
    "sft": "trains on demonstrations, for a warm start",
}
"""Command -> what it does. Here and not in the modules, so that ``--help`` and each command import little."""

STAGES = ("dpo", "rm", "sft")
"""Those that train under Lightning's command line, ``fit`` unless another of ``STAGE_SUBCOMMANDS`` comes first."""
STAGE_SUBCOMMANDS = ("fit", "validate")
