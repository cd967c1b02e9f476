"""Cut questions and contexts with answers into windows, and score the answers."""
