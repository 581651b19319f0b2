"""Networks, built from layers."""
