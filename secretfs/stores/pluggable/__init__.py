"""Secret stores that are processes of their own: Dapr's pluggable components, spoken to by gRPC through a Unix socket.

What a component of such a store says is in ``store``; nothing here knows what the plug-in does.
"""
