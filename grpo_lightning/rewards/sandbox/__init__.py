"""Runs code that a model wrote: the program in one confined process, its test and the verdict in another."""
