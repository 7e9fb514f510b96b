"""The exchangeable components of the system, and their selection from a configuration."""
