"""Dapr's Secrets API, over HTTP and gRPC, from the same views as the files.

Only `server` needs hypercorn; it is imported where the API is asked for.
"""
