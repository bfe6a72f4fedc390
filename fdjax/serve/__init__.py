"""Live sessions in a browser: `fdjax-serve METHOD` (extra `serve`)."""
