"""Small things that any room may use; they know nothing of models."""
