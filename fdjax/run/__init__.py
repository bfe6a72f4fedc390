"""From files to files: runners, their reports, and the command line."""
