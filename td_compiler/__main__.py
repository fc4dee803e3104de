"""`python -m td_compiler` is `tdc`."""

from td_compiler.cli.app import main

if __name__ == "__main__":
    main()
