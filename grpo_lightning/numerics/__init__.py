"""Hidden states -> logprobs, and what keeps such numbers exact and the same in every run."""
