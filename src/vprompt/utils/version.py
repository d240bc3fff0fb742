"""The version of the library, and its first name."""

__version__ = "0.1.0"

FORMER_NAME = "laconic"
"""The library's name in files of before."""
