"""Keys over time: which one signs, which ones are published (RFC 7517, RFC 7638).

``ring`` is pure: states as a function of the ring and the clock. ``file`` keeps a ring in a TOML file. What is signed
with a key is left to ``issuer``, where it is published to ``endpoints.discovery``.
"""
