"""What each block's prompts contribute."""
