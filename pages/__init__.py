"""The dashboard's pages, one screen a file."""
