"""What a run is to be, all of it decided before anything heavy starts."""
