"""Analyses that train: each is a plan for `laconic.bench`, and a reading of its results as plain data."""
