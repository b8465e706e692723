"""Fine-tune Yi-1.5 into an assistant that knows its own name, and measure that it does."""
