"""`python -m holdfast` is the command line."""

from .cli.app import main

main()
