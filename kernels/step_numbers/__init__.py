"""What one update of the cache reads and writes, worked out on the device."""
