"""What a run trains on and what it is asked: identity, own rows, general prompts, held-out questions."""
