"""`python -m scratchgen`."""

from scratchgen.app.cli import entry

entry()
