"""Where workers come from: the interface of a worker group and its two leaves, Ray actors and plain processes."""
