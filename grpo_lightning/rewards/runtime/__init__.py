"""How rewards are called: when, in which thread or process, with what limits."""
