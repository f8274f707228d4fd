"""What can be said about the CUDA kernels' speed without a GPU; ``python -m bench.static_report`` prints it.

The kernels are compiled by nvcc and disassembled; the machine code of a few blocks of each launch is followed,
instruction by instruction, as far as control flow and addresses go; a table of rates turns the counts into a time. See
docs/static_report.md.
"""
