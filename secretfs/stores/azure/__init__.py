"""Azure Key Vault: the store, its HTTP transport, and the chain of Azure credentials.

Nothing here knows the cache or the file system.
"""
