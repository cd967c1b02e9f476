"""Words with tags: how they are cut into tokens, and how tags are scored."""
