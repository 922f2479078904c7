"""Writes rows of launch tables from measurements on a GPU."""
