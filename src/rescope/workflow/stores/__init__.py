"""One file a store."""
