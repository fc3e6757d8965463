"""Volumes of containers: processes of their own, which talk to a mount through its files and `daemon.control_client`.

Nothing here serves a secret: a volume is a directory of a mount that a daemon serves.
"""
