"""Who holds what, and what is sent: engines now, meshes and sharding beside them."""
