"""How workers step together: one algorithm (`reduce`) over shared memory inside a node and links between nodes."""
