"""`qwell quality`: what a format of the weights does to a model's predictions."""
