"""Kubernetes secrets: the store, its HTTP client, logins, and the watch that keeps a copy current.

Nothing here knows the cache or the file system.
"""
