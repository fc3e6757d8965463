"""A tree of secrets as a file system: names, inodes, views, contents, and the publication of changes.

FUSE's protocol is in `secretfs.fuse`; where secrets come from is in `secretfs.cache`.
"""
