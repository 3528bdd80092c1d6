"""What a step takes of a device's memory: measured before training, chosen by what is free, explained where it does not fit."""
