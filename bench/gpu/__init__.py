"""Measurements on a GPU: what `qwell bench gpu` runs."""
