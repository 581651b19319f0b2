"""Arrays, random streams, parameters: what everything else stands on."""
