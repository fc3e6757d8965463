"""The command line: options, commands, and what they print.

What the commands do is in the packages below.
"""
