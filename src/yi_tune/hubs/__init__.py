"""Between a hub and the workspace: what is fetched, checked and kept, and what is uploaded."""
