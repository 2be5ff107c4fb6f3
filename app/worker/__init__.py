"""How requests come in: a gunicorn worker that no slow caller can hold up (RFC 9112). See ``docs/worker.md``.

``framing`` finds where a request ends, ``connection`` keeps what belongs to one caller, ``buffered`` is the worker.
What a request means is left to the application.
"""
