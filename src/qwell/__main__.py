"""`python -m qwell` is the console command `qwell`."""

from qwell.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
