"""Signing keys over time: which key signs, which keys are published (RFC 7517, RFC 7638).

``model`` is pure: states as a function of the ring and the clock. ``rotation_plan`` makes safe changes,
``validation`` checks changes that others made. ``backends`` store a ring, ``serialization`` is its format,
``service`` is ``flask keys``. ``active`` is the ring that this process uses.
"""
