"""What lies between the matrices of a decoder block: normalisation and rotary positions."""
