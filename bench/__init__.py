"""Measurements of the kernels, models and server, and the reports that show them."""
