"""The policy and its reference: how they are loaded, and in which dtypes."""
