"""The grants of the token endpoint; the metadata lists them in this order."""

from app.oauth.grants.client_credentials import ClientCredentialsGrant

GRANTS = (ClientCredentialsGrant,)
