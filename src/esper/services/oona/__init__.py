"""Oona: the message bus that carries health, decisions, outcomes and announcements between parts."""
