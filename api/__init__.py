"""The HTTP api; for now what an operator asks: is it alive, is it ready, what does it count."""
