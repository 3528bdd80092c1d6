"""Rows to prompts: converted, written by the chat template, made into tokens, held in memory."""
