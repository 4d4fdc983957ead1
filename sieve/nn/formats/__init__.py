"""How the layers of a pruned model are stored: one file per format."""
