"""OmniDreams: driving worlds that follow an HD map."""
