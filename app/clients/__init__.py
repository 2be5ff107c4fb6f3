"""Clients: the one door to their rows, and to those of their secrets.

``verification`` is the request path, ``marks`` what it remembers; ``store`` and ``secrets`` are management. ``fields`` and
``digests`` are pure: what a client may be made of, how secrets are made and digested.
"""
