"""The OAuth 2.0 protocol on Authlib: the server, policy, grants, client authentication and endpoints."""
