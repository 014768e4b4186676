"""Jobs: what is asked is checked and filled in, queued, and taken from state to state by one table."""
