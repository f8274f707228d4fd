"""Accuracy and throughput of cnnext against PyTorch, on the machine at hand: ``python -m bench``."""
