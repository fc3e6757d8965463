"""The one part that is compiled. It is optional: without it secretfs does the same in another way, or does without."""

from setuptools import Extension, setup

setup(
    ext_modules=[Extension("secretfs.fuse._inode_for_handle", ["secretfs/fuse/_inode_for_handle.c"], optional=True)],
)
