"""Attention over unquantised keys and values in preallocated buffers, and appending to them."""
