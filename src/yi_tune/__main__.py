"""`python -m yi_tune` is `yi-tune`."""

from yi_tune.cli import main

main()
