"""The convolutions in Triton: the same stems as csrc/cuda, for machines without a CUDA build and cards without kernels.

`operators` declares the operators of the namespace `cnnext_triton` and can be imported everywhere. The other modules
hold kernels; they import Triton, so they are imported at the first call.
"""
