"""One pass over task data: which statistics a method needs, collecting them, keeping them."""
