"""Clients: the one door to their rows, and to those of their secrets.

``verification`` is the request path, ``marks`` what it remembers; ``store`` and ``secrets`` are management. Pure are
``fields``, what a client may be made of, and ``digests``, how secrets are made and digested.
"""
