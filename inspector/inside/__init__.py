"""Views of one forward pass, and what becomes of it when a component is changed."""
