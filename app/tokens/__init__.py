"""Access tokens after the decision to grant one: issued, validated, revoked, and the feed of what was revoked."""
