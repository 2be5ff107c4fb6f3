"""Clients: the only package that reads and writes their rows, and those of their secrets.

On the request path: ``authentication`` (clients with a secret), ``lookup`` (all others), ``last_used``. Management:
``repository``, ``secrets``, ``jwks_cache``. How secrets are stored: ``secret_digests``, ``encrypted_secrets``. Pure:
``fields``, ``scopes``.
"""
