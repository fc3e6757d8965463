"""What Linux offers and this program needs: mounts, processes, namespaces, the service manager, the log.

Nothing here knows secrets, stores or FUSE's protocol.
"""
