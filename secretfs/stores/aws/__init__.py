"""AWS Secrets Manager and the Parameter Store of Systems Manager: the stores, and the account they share.

Nothing here knows the cache or the file system.
"""
