"""Planted faults: proof that the tests fail when a kernel is wrong. Run with `python -m tests.mutation`."""
