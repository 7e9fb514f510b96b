"""Settings: typed, bounded, described."""
