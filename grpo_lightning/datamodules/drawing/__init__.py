"""Prompts to batches: the order of a run, mixtures and curricula, loaders that go on where a checkpoint was written."""
