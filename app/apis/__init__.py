"""APIs: identifiers, scopes, lifetimes and claims of what tokens are for, and which clients may call them.

A token request reads none of these tables: what it needs of a client's grants is also in the client's row.
"""
