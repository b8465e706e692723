"""The consoles, for who has not yet moved to output.py."""

from yi_tune.output import err as err
from yi_tune.output import out as out
