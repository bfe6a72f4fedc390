"""A procedural road scene, drawn as the HD maps that OmniDreams is steered by."""
