"""Passes for the CPU that torch needs several operations for, in C++ compiled once on the machine that runs them.

Floor 0: tensors only. `compiled_kernels()` is None where no compiler is found, and callers then use torch's operations.
"""
