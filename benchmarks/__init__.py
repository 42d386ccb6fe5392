"""What rescope costs, beside `contextlib.AsyncExitStack`: `python -m benchmarks`."""
