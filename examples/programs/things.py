"""A command-line tool that logs in once, and keeps its token where the system keeps passwords.

login asks for what TOKEN_URL, CLIENT_ID and CLIENT_SECRET_FILE do not say; logout forgets all of it.
"""

import argparse
import contextlib
import getpass
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fasteners
import keyring
from authlib.oauth2.rfc6749 import OAuth2Token
from keyring.errors import KeyringError, PasswordDeleteError
from prometheus_client import REGISTRY, write_to_textfile
from requests import RequestException

from tokens import Account, CredentialsRefused, NotSet, Session, TokenError, is_good, need

NAME = "things"
FOLDER = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / NAME


class Problem(Exception):
    """What the user is told."""


class SystemKeyring:
    """macOS' Keychain, Windows' Credential Locker, GNOME's and KDE's."""

    def get(self, entry: str) -> str | None:
        """What is kept under a name."""
        return keyring.get_password(NAME, entry)

    def put(self, entry: str, text: str) -> None:
        """Keep it."""
        keyring.set_password(NAME, entry, text)

    def remove(self, entry: str) -> None:
        """Forget it."""
        with contextlib.suppress(PasswordDeleteError):
            keyring.delete_password(NAME, entry)


class Files:
    """Where there is no keyring (a server, a container): files of mode 0600, each written whole."""

    def get(self, entry: str) -> str | None:
        """What is kept under a name."""
        with contextlib.suppress(FileNotFoundError):
            return (FOLDER / entry).read_text()
        return None

    def put(self, entry: str, text: str) -> None:
        """Keep it."""
        file, path = tempfile.mkstemp(dir=FOLDER, prefix=f".{entry}.")  # 0600 from its first byte
        try:
            with os.fdopen(file, "w") as opened:
                opened.write(text)
            Path(path).replace(FOLDER / entry)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise

    def remove(self, entry: str) -> None:
        """Forget it, and what a killed run has left."""
        for path in FOLDER.glob(f".{entry}.*"):
            path.unlink(missing_ok=True)
        (FOLDER / entry).unlink(missing_ok=True)


def choose_place() -> SystemKeyring | Files:
    """The system's keyring; files where it has none, or THINGS_KEEP_IN=file."""
    wanted = os.environ.get("THINGS_KEEP_IN", "")
    if wanted not in {"", "file", "keyring"}:
        raise Problem(f"THINGS_KEEP_IN is {wanted!r}: file or keyring")
    has_one = wanted != "file" and keyring.get_keyring().priority > 0
    if wanted == "keyring" and not has_one:
        raise Problem("this system has no keyring: THINGS_KEEP_IN=file keeps the login in files of mode 0600")
    FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
    return SystemKeyring() if has_one else Files()


class KeptSession(Session):
    """A session whose token outlives the process; processes that find it old fetch one together."""

    def __init__(self, account: Account, place: SystemKeyring | Files) -> None:
        super().__init__(account)
        self.place = place
        self.token = self._load()

    def renew(self, instead_of: str | None) -> None:
        """Take the token that another process has fetched meanwhile, else fetch one for all."""
        with fasteners.InterProcessLock(FOLDER / "lock"):
            self.token = self._load()
            if not is_good(self.token) or self.token["access_token"] == instead_of:
                super().renew(instead_of)
                self.place.put("token", json.dumps(self.token))

    def _load(self) -> Any:
        with contextlib.suppress(ValueError, TypeError, LookupError):
            token = OAuth2Token.from_dict(json.loads(self.place.get("token") or ""))
            if isinstance(token["access_token"], str) and is_good(token):
                return token
        return None  # as good as none


def login(place: SystemKeyring | Files) -> None:
    """Ask, try, keep: a login that does not work is not kept."""
    token_url = os.environ.get("TOKEN_URL") or input("Token URL: ")
    client_id = os.environ.get("CLIENT_ID") or input("Client ID: ")
    secret_file = os.environ.get("CLIENT_SECRET_FILE")
    if secret_file:
        # Where it lies is kept, not the secret: whoever rotates it replaces the file.
        account = Account(token_url, client_id, os.environ.get("SCOPE"), secret_file=str(Path(secret_file).absolute()))
    else:
        secret = os.environ.get("CLIENT_SECRET") or getpass.getpass("Client secret: ")
        account = Account(token_url, client_id, os.environ.get("SCOPE"), secret=secret)
    session = Session(account)
    session.renew(None)
    with fasteners.InterProcessLock(FOLDER / "lock"):
        place.put("token", json.dumps(session.token))
        place.put("login", json.dumps(asdict(account)))
    print(f"Logged in as {client_id}; the token is good for {session.token['expires_in']} s.")


def list_resources(place: SystemKeyring | Files) -> None:
    """Print them, one in a line."""
    try:
        account = Account(**json.loads(place.get("login") or ""))
    except (ValueError, TypeError):
        raise Problem("not logged in: things.py login") from None
    answer = KeptSession(account, place).get(need("API_URL"))
    if answer.status_code == 403:
        raise Problem("the API answered 403: the token is good, but its scope does not allow this")
    if not answer.ok:
        raise Problem(f"the API answered {answer.status_code}")
    try:
        print("\n".join(answer.json()["things"]))
    except (ValueError, LookupError, TypeError):
        raise Problem('the API answered something else than {"things": ["…"]}') from None


def logout(place: SystemKeyring | Files) -> None:
    """Forget the login and the token."""
    was = place.get("login")
    for entry in ("login", "token"):
        place.remove(entry)
    print("Logged out." if was else "You were not logged in.")


COMMANDS: dict[str, Callable[[SystemKeyring | Files], None]] = {
    "login": login,
    "list-resources": list_resources,
    "logout": logout,
}


def main() -> int:
    """0: done; 1: told why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--metrics", metavar="FILE.prom", help="for node_exporter's textfile collector")
    arguments = parser.parse_args()
    told = ""
    try:
        COMMANDS[arguments.command](choose_place())
    except CredentialsRefused as error:
        told = f"{error}; then: things.py login"
    except (TokenError, NotSet, Problem) as error:
        told = str(error)
    except RequestException as error:
        told = f"the API is unreachable: {type(error).__name__}"
    except OSError as error:
        told = f"{error.filename}: {error.strerror}"
    except KeyringError as error:
        told = f"the keyring does not open ({type(error).__name__}): unlock it, or set THINGS_KEEP_IN=file"
    except (KeyboardInterrupt, EOFError):
        told = "nothing was changed"
    finally:
        if arguments.metrics:
            write_to_textfile(arguments.metrics, REGISTRY)
    if told:
        print(told, file=sys.stderr)
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main())
