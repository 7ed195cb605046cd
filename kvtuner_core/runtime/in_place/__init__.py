"""The packed cache in preallocated buffers, read by fused kernels."""
