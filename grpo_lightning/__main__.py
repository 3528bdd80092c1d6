"""``python -m grpo_lightning``; safe to import again in processes that launchers start."""

from grpo_lightning.cli import main

if __name__ == "__main__":
    main()
