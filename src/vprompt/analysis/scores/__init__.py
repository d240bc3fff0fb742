"""Criteria against the exact effect of removing each prompt."""
