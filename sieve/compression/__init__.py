"""What makes a model smaller, and a plan of how much."""
