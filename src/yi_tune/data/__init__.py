"""What a run trains on, and what it is asked: the identity, the user's own rows, general prompts, held-out questions."""
