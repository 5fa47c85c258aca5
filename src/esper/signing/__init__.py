"""Signatures on what can carry code: nobody parses a byte of it before they hold."""
