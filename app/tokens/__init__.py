"""Access tokens after the decision to grant one: issuing, validation, revocation, and the feed of revocations."""
