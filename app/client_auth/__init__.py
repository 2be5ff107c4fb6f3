"""The ways for a client to prove who it is; the metadata advertises them in this order."""

from app.client_auth.client_secret import ClientSecretBasic, ClientSecretPost

METHODS = (ClientSecretBasic, ClientSecretPost)
