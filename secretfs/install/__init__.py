"""What an installation puts beside the command: units, links, manual pages, completions, and a line for updatedb.

What is here knows the paths of a system and the texts of a command line. It mounts nothing, and reads no secret.
"""
