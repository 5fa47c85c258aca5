"""Urza: the artifact store that keeps blueprints, kernels, their lineage and what came of them."""
