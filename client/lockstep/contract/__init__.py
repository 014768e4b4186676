"""What client, server, coordinator and workers share: errors, rules of fields, defaults' arithmetic, digests, the manifest.

Nothing here imports grpc, NumPy or Ray.
"""
