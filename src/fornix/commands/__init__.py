"""The subcommands of `fornix`, one module each, whose `main` takes arguments and returns an exit code."""
