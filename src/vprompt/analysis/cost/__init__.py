"""What prompts cost, beside the papers' tables."""
