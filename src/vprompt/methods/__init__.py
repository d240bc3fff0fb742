"""Methods of adaptation, one file each, and what they are made of."""
