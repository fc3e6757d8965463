"""The node driver for Kubernetes: the Container Storage Interface (CSI) for volumes that are views of apps.

https://github.com/container-storage-interface/spec/blob/v1.11.0/spec.md has the protocol. Nothing here serves a secret:
a volume is a bind mount of a directory of a mount that other processes serve.
"""
