"""Commands beside Lightning's: report, migrate, export, chat. Each has ``main(args) -> int``, the exit status."""
