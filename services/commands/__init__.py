"""The operators' commands, one a file."""
