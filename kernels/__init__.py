"""Triton kernels, installed as fastnmf.kernels: a file for each solver, reached through backends.py
only."""
