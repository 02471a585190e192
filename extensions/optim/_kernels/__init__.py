"""Compiled steps: C++ for the CPU, Triton for CUDA."""
