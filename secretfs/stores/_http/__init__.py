"""What the stores that speak HTTP share: connections, deadlines, trust, bounded answers and what failures mean.

Nothing here knows a store or an API. The stores keep their clients; this package is below them.
"""
