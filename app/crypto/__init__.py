"""Cryptography without state: signature algorithms, JWS, JWK, and encryption of what is stored."""
