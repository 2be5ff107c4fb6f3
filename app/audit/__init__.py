"""What happened, for operators: typed events, the audit log, and the outbox for events of commands."""
