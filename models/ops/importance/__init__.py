"""How much each token is read by others, from the operator's own weights, without the N² of them."""
