"""The user's own data: found, read, checked, kept, packed."""
