"""Reference maps in memory and on disk."""
