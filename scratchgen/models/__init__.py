"""Models: losses and samplers around networks they are given."""
