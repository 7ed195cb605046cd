"""Use cases: what the pages, the command line and the face call."""
