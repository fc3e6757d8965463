"""Components become open stores: in the order of their references, with their caches, and anew after a reload.

How a store talks to its backend is in `secretfs.stores`; what its files look like is in `secretfs.fs`.
"""
