"""The gRPC face: servicers that take messages apart, one interceptor, and one table from errors to status codes."""
