"""What operators see: the audit log and metrics. They are fed by plain calls.

The file system is unknown here, and nothing is decided.
"""
