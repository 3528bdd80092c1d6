"""What a step tells about itself and how good a policy is: sums over micro-batches and ranks, divided once."""
