"""New tokens into the packed store, in place."""
