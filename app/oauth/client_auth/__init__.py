"""The client authentication methods; the metadata lists them in this order."""

from app.oauth.client_auth.client_secret import ClientSecretBasic, ClientSecretPost
from app.oauth.client_auth.client_secret_jwt import ClientSecretJwt
from app.oauth.client_auth.federated_jwt import FederatedJwt
from app.oauth.client_auth.private_key_jwt import PrivateKeyJwt
from app.oauth.client_auth.tls import SelfSignedTlsClientAuth, TlsClientAuth

METHODS = (
    ClientSecretBasic,
    ClientSecretPost,
    ClientSecretJwt,
    PrivateKeyJwt,
    FederatedJwt,
    TlsClientAuth,
    SelfSignedTlsClientAuth,
)
