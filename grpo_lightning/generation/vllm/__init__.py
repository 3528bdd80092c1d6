"""vLLM in the processes of the training, or as a server beside them."""
