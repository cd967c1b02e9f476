"""Follow one or two texts with a label, several labels or a value to their score."""
