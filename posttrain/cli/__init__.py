"""The command line; `app` has its verbs."""

from posttrain.cli.app import STAGE_HELP, main

__all__ = ["STAGE_HELP", "main"]
