"""What sets Lockstep beside its peers: races for speed, and numbers computed by others to compare with."""
