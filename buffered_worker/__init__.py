"""A gunicorn worker that slow callers cannot hold up, and a stream that a slow reader cannot: see ``README.md``.

``worker`` is the worker, ``connection`` the state of one caller, ``framing`` finds where a request ends (RFC 9112),
``request_head`` parses its head, ``response`` writes responses, ``scheduler`` decides which thread runs,
``load_sharing`` spreads connections over workers. ``stream`` writes lines and depends on nothing else here.
"""
