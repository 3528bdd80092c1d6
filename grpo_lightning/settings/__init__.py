"""Settings as Python gives them: one flat signature, names and types checked as in a config, what a checkpoint keeps of them."""
