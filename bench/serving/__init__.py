"""`qwell bench serve` and `qwell bench soak`: a server under load, as its clients see it."""
