"""What operators see of a running server: health, metrics and traces."""
