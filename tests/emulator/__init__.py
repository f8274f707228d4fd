"""Runs the kernels of csrc/cuda on the CPU: the same text, compiled by g++."""
