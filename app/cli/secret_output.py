"""How commands show a client's secrets, of which they know no more than the last four characters."""

from datetime import datetime
from typing import Any

from app.cli.output import report, timestamp
from app.clients.secret_digests import IMPORTED_SECRET_SAFE_CHARACTERS
from app.clients.secrets import state_of
from app.database.models import ClientSecretRow
from app.oauth.client_auth import METHODS
from app.types import ANY_SECRET_METHOD

METHODS_WITH_SECRETS = {ANY_SECRET_METHOD, *(method.name for method in METHODS if method.has_secrets)}


def describe_secret(secret: ClientSecretRow, now: datetime) -> dict[str, Any]:
    """Return what may be shown of ``secret``."""
    return {
        "id": secret.secret_id,
        "last_four": secret.last_four,
        "state": str(state_of(secret, now)),
        "origin": secret.origin,
        "pepper": secret.pepper_id or None,
        "encryption_key": secret.encryption_key_id,
        "created_at": timestamp(secret.created_at),
        "expires_at": timestamp(secret.expires_at),
        "last_used_at": timestamp(secret.last_used_at),
        "revoked_at": timestamp(secret.revoked_at),
    }


def warn_of_weak(imported: str | None) -> None:
    """Warn if an imported secret is short."""
    if imported is not None and len(imported) < IMPORTED_SECRET_SAFE_CHARACTERS:
        report(f"Warning: the secret has under {IMPORTED_SECRET_SAFE_CHARACTERS} characters; a generated one is safer.")
