"""FUSE's protocol: the kernel's requests become calls of `secretfs.fs`; the connection to the kernel.

Nothing here decides what a file contains or who may see it.
"""

from secretfs.fuse import inode_for_handle

inode_for_handle.load()  # before any module here imports pyfuse3
