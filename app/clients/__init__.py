"""Clients: the only package that reads and writes their rows, and those of their secrets.

On the request path: ``authentication``, ``last_used``. Management: ``repository``, ``secrets``, ``trusts`` (platforms
whose tokens authenticate a client). Keys that clients and platforms publish: ``jwks_cache``. How secrets are stored:
``secret_digests``, ``encrypted_secrets``. Pure: ``fields``, ``scopes``, ``trust_rules``.
"""
