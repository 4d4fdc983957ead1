"""What every part of the driver may use and that knows none of them."""
