"""When to condense."""
