"""What is known of one store and for how long: answers, single flight, background refresh, circuit breaker.

Scopes, paths and the kind of store are unknown here.
"""
