"""Reads and writes the weights of the public code of arXiv 2510.10060."""

from models.reference.convert import load_reference_layer, load_reference_network, to_reference_state

__all__ = ["load_reference_layer", "load_reference_network", "to_reference_state"]
