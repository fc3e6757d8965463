"""GCP Secret Manager: the store, its credentials on google-auth, and what its errors mean.

Nothing here knows the cache or the file system.
"""
