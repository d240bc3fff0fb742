"""E²VPT taken apart: its parts, sharing, lengths and pruning."""
