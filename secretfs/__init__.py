"""secretfs: Dapr's secrets building block whose API is the file system."""

__version__ = "0.1.0"
