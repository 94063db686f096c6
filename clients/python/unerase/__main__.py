"""`python -m unerase` is the command `unerase`."""

from unerase._cli import main

if __name__ == "__main__":
    main()
