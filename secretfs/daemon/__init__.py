"""Processes: the worker that serves a mount, its supervisor, takeovers, reloads, and commands under `run`.

This package imports nothing by itself: the supervisor has to stay light.
"""
