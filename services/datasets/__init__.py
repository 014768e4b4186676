"""Datasets: uploads are stored raw, read by a child process behind limits, and kept by the digest of their content."""
