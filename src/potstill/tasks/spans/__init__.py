"""Questions and contexts with answers: how they are cut, and how answers are scored."""
