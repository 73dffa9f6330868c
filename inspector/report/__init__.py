"""What the report page shows: gathered here, drawn by ``inspector.render.page``."""
