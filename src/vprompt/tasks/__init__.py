"""Targets, one file each: what is to be said of an image; `vprompt.tasks.base` says what a target does."""
