"""`qwell bench model`: a model's speed on a CPU, beside what the machine allows and a peer's."""
