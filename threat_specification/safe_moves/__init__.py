"""Sets of perturbations that combine a mixture of safe changes of an image with small noise."""
