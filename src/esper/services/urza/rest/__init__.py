"""The artifact store over HTTP."""
