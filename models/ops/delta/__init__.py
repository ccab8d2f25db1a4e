"""Inner products of outputs and their gradients, which backward begins with."""
