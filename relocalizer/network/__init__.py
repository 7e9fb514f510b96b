"""The Reloc3r network, written from its published description; released checkpoints load into it."""
