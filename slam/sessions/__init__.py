"""Maps across sessions: storing, continuing, merging and scaling them to meters."""
