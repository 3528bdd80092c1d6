"""One file per kind of reward, beside the base classes that some of them share."""
