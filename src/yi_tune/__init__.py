"""Fine-tune Yi-1.5 into an assistant that knows its own name, and measure that it does."""

__version__ = "0.1.0"
