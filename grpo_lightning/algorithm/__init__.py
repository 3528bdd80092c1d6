"""The paper: from rewards and logprobs to a loss, as pure functions and small value objects."""
