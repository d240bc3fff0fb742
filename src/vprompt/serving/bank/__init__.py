"""Many adapters over one backbone, on one device, mixed in one batch."""

from vprompt.serving.bank.bank import Bank, Entry

__all__ = ["Bank", "Entry"]
