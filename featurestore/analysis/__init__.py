"""What the features say: correlations with labels and leak-free held-out prediction."""
