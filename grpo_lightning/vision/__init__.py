"""Prompts with images: read, put into messages, and made into tokens and pixels by the model's processor."""
