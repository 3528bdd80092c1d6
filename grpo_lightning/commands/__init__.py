"""Commands beside fit, validate, test and predict: one module each, with ``main(args) -> exit status``."""
