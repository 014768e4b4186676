"""What Lockstep is measured against, and how: each script runs us and the peer in turn, in one run."""
