"""Everything that a run will be, decided before anything heavy starts."""
