"""Published checkpoint formats, one a file."""
