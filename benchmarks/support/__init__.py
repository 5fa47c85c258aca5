"""What the questions share: hosts, timing, and the report that every benchmark prints."""
