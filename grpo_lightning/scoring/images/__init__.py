"""Images of prompts in a forward pass: encoded once a group, put in the place of their tokens, with the model's positions."""
