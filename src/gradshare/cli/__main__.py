"""`python -m gradshare.cli`, the same program as `gradshare`."""

from gradshare.cli import program

program()
