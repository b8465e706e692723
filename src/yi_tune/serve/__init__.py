"""The OpenAI-compatible API of `yi-tune serve`: HTTP in, generations out. Nothing here imports torch."""
