"""What one step trains on: which prompts are sampled, when, and what is kept."""
