"""The grants of the token endpoint; the metadata advertises them in this order."""

from app.grants.client_credentials import ClientCredentialsGrant

GRANTS = (ClientCredentialsGrant,)
