"""The command line: parse, call the library, print.

Nothing heavy is imported before a command runs.
"""

from featurestore.cli.app import main

__all__ = ["main"]
