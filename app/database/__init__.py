"""SQLAlchemy: the engine and its connections, the tables, and the prepared queries of every request."""
