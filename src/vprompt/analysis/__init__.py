"""Questions about a model or a method, answered with plain data."""
