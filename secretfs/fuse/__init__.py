"""FUSE's protocol: the kernel's requests become calls of `secretfs.fs`; the connection to the kernel.

Nothing here decides what a file contains or who may see it.
"""
