"""The commands that are added to ``flask``."""

from app.cli.clients import clients
from app.cli.keys import keys

COMMANDS = (clients, keys)
