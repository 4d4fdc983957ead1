"""What all operators share: launches."""
