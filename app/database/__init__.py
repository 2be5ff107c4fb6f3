"""SQLAlchemy: the engine and its connections, the tables, and statements that every request executes."""
