"""How fast secretfs is: ``python -m benchmarks``. What each line means is in docs/performance.md."""
