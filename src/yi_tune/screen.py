"""Where things are printed: results on stdout, all else on stderr."""

from rich.console import Console

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
