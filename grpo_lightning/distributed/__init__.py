"""The policy over many devices: sharded weights, tensor parallelism, replicas, and ranks that notice each other's end."""
