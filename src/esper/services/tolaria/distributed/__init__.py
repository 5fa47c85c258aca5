"""Growth in several processes: one decides, all do the same at the same step."""
