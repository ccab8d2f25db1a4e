"""Meshes of processes, sharding, training engines and the planner."""
