"""The ``inspector`` command, also as ``python -m inspector``."""

from .process import begin

begin()  # before the imports of everything else, which take a while


def main() -> None:
    """The ``inspector`` command."""
    from .cli import main

    main()


if __name__ == "__main__":
    main()
