"""The command line: arguments in, one JSON document or a readable table out."""
