"""``python -m inspector`` is the ``inspector`` command."""

from .cli import main

main()
