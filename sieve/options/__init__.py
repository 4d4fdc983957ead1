"""What a user can choose, and which values could work: said at once, so nothing here imports torch."""
