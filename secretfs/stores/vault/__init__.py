"""HashiCorp Vault and OpenBao: key-value and dynamic engines, authentication, tokens and leases.

Nothing here knows the cache or the file system.
"""
