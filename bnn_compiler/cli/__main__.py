"""``python -m bnn_compiler.cli``."""

from .main import main

if __name__ == "__main__":
    main()
