"""Completions that the data has written, as token ids: demonstrations for SFT, pairs for DPO and reward models."""
