"""Linear layers whose weight is a product of two thin factors."""
