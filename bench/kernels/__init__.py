"""Measurements of kernels."""
