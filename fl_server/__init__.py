"""The model owner's side: connects the core to Flower."""
