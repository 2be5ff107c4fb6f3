"""APIs: identifiers, scopes, lifetimes and claims of what tokens are for, and which clients may call them.

A token request reads nothing of this package: what it needs of a client's grants is compiled into the client's row.
"""
