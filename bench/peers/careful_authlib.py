"""What a careful engineer writes on Authlib in a day: clients in SQLite, a digest, a line a token, one parsed key."""

import hmac
import logging
import os
import sys
import time
from hashlib import sha256
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, grants
from authlib.oauth2.rfc9068 import JWTBearerTokenGenerator
from flask import Flask, Response
from flask_sqlalchemy import SQLAlchemy
from joserfc.jwk import RSAKey
from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

ISSUER, CLIENT_ID, CLIENT_SECRET = (os.environ[name] for name in ("ISSUER", "CLIENT_ID", "CLIENT_SECRET"))
SCOPES = "read write"
PEPPER = b"a pepper of the settings"

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{os.environ['FOLDER']}/authlib-{os.getpid()}.db"
db = SQLAlchemy(app)
log = logging.getLogger("tokens")
log.addHandler(logging.StreamHandler(sys.stdout))
log.setLevel(logging.INFO)
KEY = RSAKey.generate_key(2048, parameters={"kid": "bench", "alg": "RS256", "use": "sig"})


def digest(secret: str) -> str:
    return hmac.digest(PEPPER, secret.encode(), sha256).hex()


class Client(db.Model, ClientMixin):  # type: ignore[name-defined,misc]
    client_id: Mapped[str] = mapped_column(String, primary_key=True)
    secret_digest: Mapped[str]
    scope: Mapped[str]

    def get_client_id(self) -> str:
        return self.client_id

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str | None) -> str:
        allowed = set(self.scope.split())
        return " ".join(one for one in (scope or self.scope).split() if one in allowed)

    def check_client_secret(self, client_secret: str) -> bool:
        return hmac.compare_digest(self.secret_digest, digest(client_secret))

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method in {"client_secret_basic", "client_secret_post"} and endpoint == "token"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "client_credentials"


class Tokens(JWTBearerTokenGenerator):
    def get_jwks(self) -> Any:
        return KEY

    def get_extra_claims(self, client: Any, grant_type: str, user: Any, scope: str | None) -> dict[str, Any]:
        del client, grant_type, user, scope
        return {"nbf": int(time.time())}


class Grant(grants.ClientCredentialsGrant):  # type: ignore[misc]
    TOKEN_ENDPOINT_AUTH_METHODS = ["client_secret_basic", "client_secret_post"]  # noqa: RUF012 - As Authlib has it.


def save_token(token: dict[str, Any], request: Any) -> None:
    log.info("token for %s, scope %s", request.client.client_id, token.get("scope"))


server = AuthorizationServer(
    app, query_client=lambda client_id: db.session.get(Client, client_id), save_token=save_token
)
server.register_grant(Grant)
server.register_token_generator("default", Tokens(issuer=ISSUER, expires_generator=lambda *_: 3600))
with app.app_context():
    db.create_all()
    db.session.add(Client(client_id=CLIENT_ID, secret_digest=digest(CLIENT_SECRET), scope=SCOPES))
    db.session.commit()


@app.post("/oauth/token")
def issue_token() -> Response:
    answer: Response = server.create_token_response()
    return answer
