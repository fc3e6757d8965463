"""What a user declares, read as Dapr reads it: components, configurations and references between them.

Nothing here opens a store or knows the file system.
"""
