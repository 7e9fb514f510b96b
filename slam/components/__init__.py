"""The exchangeable parts of the system, and which of them a configuration asks for."""
