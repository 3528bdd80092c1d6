"""The settings of the command line as a table, which is read without torch: a first check of configs, and help."""
