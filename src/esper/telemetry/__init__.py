"""Telemetry: every metric declared once, and events with fields in logs; silent until it is asked for."""
