"""Files made of secrets by templates: the language, the formats, and the process that keeps them within limits.

Nothing of where a secret comes from, who may see it, and where a file is shown.
"""
