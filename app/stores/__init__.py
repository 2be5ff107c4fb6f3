"""What must be remembered for a while: tokens that were revoked before they expired, assertions that were used."""
