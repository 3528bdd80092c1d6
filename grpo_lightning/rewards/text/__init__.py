"""What a reward reads out of a text: answers, numbers, names, the turns of a conversation."""
