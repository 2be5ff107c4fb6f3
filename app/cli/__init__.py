"""The commands that this project adds to ``flask``."""

from app.cli.apis import apis
from app.cli.clients import clients
from app.cli.doctor import doctor
from app.cli.explain import explain
from app.cli.keys import keys
from app.cli.migrations import db
from app.cli.restore_check import restore_check
from app.cli.servers import servers
from app.cli.tokens import tokens

COMMANDS = (apis, clients, db, doctor, explain, keys, restore_check, servers, tokens)
