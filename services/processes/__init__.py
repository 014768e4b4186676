"""The processes that the server starts, and who owns what on this machine."""
