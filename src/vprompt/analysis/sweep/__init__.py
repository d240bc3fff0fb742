"""Accuracy against the number of prompts."""
