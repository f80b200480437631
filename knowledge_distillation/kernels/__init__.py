"""Triton kernels of the fused losses, for CUDA devices."""
