"""The backends that can keep a key ring."""
