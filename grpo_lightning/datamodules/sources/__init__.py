"""Rows: what names a dataset, where it is, and how its rows are read, all at once or as a stream."""
