"""Training and fine-tuning of Reloc3r: the recipe of the paper, with the defects of its published code corrected."""
