"""Prompts with images: read, put into tokens and pixels by the model's processor, encoded once a group, and placed."""
