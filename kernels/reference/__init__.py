"""The meaning of every op in plain torch, one file an op."""
