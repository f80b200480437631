"""The loop: windows of batches, one step each; what happens around it; what it leaves on disk."""
