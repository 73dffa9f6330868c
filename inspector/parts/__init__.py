"""A model taken apart: backbone and head, roles, structure, costs, and how a forward pass is watched."""
