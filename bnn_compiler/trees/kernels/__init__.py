"""What runs as machine code: loops over words of bits that Python and NumPy would be too slow for."""
