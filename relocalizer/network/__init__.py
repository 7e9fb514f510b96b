"""The Reloc3r network, implemented from its published description and compatible with the released checkpoints."""
