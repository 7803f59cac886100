"""The Bertron client."""
