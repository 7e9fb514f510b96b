"""Photos without an order: which of them overlap, and the map that grows from one to the next."""
