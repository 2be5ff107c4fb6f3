"""The application of a machine whose clock is wrong: by so many seconds as ``SKEW_SECONDS`` says."""

import os
from datetime import datetime, timedelta
from functools import partial

from app import create_app, utc_now
from app.operations.gunicorn_hooks import create_served_app

SKEW = timedelta(seconds=float(os.environ["SKEW_SECONDS"]))


def wrong_time() -> datetime:
    """What that machine's clock shows."""
    return utc_now() + SKEW


app = create_served_app(partial(create_app, clock=wrong_time))
