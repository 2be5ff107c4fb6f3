"""Settings: what may be set (``settings``), and where the values come from (``loader``)."""
