"""Rank of attention against the number of prompts."""
