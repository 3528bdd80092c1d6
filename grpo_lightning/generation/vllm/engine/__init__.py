"""An engine in the process of the training: built, asked, given weights, ended."""
