"""What is refused before weights load: settings beside each other, and beside the model, the data and the Trainer."""
