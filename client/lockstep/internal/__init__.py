"""Generated from proto/ by scripts/protos."""
