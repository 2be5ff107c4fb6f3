"""A gunicorn worker that slow callers cannot hold up, and a stream that a slow reader cannot: see ``README.md``.

``worker`` is the worker, ``connection`` the state of one caller, ``request_parser`` turns its bytes into requests (RFC
9112), ``response`` writes responses, ``scheduler`` decides which thread runs, ``load_sharing`` spreads connections over
workers. ``stream`` writes lines and depends on nothing else here.
"""
