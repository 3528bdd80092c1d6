"""From rollouts to a better policy: what a step compares, how it is divided into passes, and how the weights move."""
