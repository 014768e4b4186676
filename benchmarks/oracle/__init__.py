"""What the engine computes, computed by PyTorch in float64: layers, losses and optimizers from the same descriptions."""
