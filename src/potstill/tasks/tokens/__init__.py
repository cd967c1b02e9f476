"""Cut words with tags into tokens, and score the tags."""
