"""`python -m gradshare`, the same program as `gradshare`."""

from gradshare.cli import program

program()
